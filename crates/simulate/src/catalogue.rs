//! The items: their attributes, their releases, and the choice of items that a listener is offered.
//!
//! Genres form a ring on which neighbours are similar. An item's cell is its first genre and its language; within its
//! cell it has a rank, drawn once. Memory: 12 bytes an item.

use std::io::{self, Write};

use chrono::NaiveDate;
use schemas::hash::mix64;

use crate::DAY_MS;
use crate::random::{Purpose, Random, key};

/// The genres in the order of the ring: neighbours are similar, and the last is a neighbour of the first.
pub(crate) const GENRES: [&str; 24] = [
    "pop",
    "dance",
    "house",
    "techno",
    "trance",
    "ambient",
    "classical",
    "opera",
    "soundtrack",
    "jazz",
    "blues",
    "soul",
    "r&b",
    "hip-hop",
    "trap",
    "reggaeton",
    "latin",
    "reggae",
    "world",
    "folk",
    "country",
    "rock",
    "metal",
    "indie",
];

/// The languages, the most frequent first.
pub(crate) const LANGUAGES: [&str; 8] = ["en", "zh", "es", "ja", "ko", "pt", "hi", "fr"];

const CELLS: usize = GENRES.len() * LANGUAGES.len();
/// Releases begin this many days before the first day.
const BACK_DAYS: i32 = 720;
/// Share of the items released from [`NEW_DAYS`] before the first day on; the others are spread over the whole
/// time.
const NEW_SHARE: f64 = 0.25;
const NEW_DAYS: i32 = 30;
/// Share of the offers that are recent releases; the others are of any age.
const RECENT_SHARE: f64 = 0.4;
/// Mean age in days of items that are offered as recent releases.
const RECENT_AGE_DAYS: f64 = 10.0;
/// Maximum draws of items that are not released yet, before the cell's oldest item is taken.
const TRIES_MAX: usize = 8;

/// A first genre and a language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) genre: usize,
    pub(crate) language: usize,
}

impl Cell {
    fn index(self) -> usize {
        self.language * GENRES.len() + self.genre
    }
}

/// The genre at a position on the ring.
pub(crate) fn genre_at(position: f64) -> usize {
    (position.floor() as i64).rem_euclid(GENRES.len() as i64) as usize
}

/// A random position on the ring of genres; items and listeners have the same distribution.
pub(crate) fn ring_position(random: &mut Random) -> f64 {
    random.unit().powf(1.3) * GENRES.len() as f64
}

/// A random language; items and listeners have the same distribution.
pub(crate) fn language(random: &mut Random) -> usize {
    let u = random.unit();
    ((u * u * LANGUAGES.len() as f64) as usize).min(LANGUAGES.len() - 1)
}

/// An item's attributes, a function of its number.
#[derive(Debug)]
struct Attributes {
    cell: Cell,
    genres: [usize; 3],
    genre_count: usize,
    release_day: i32,
}

/// Draws the items that listeners are offered.
#[derive(Debug)]
pub(crate) struct SimulatedCatalogue {
    key: u64,
    days: i32,
    /// Day of release, counted from the first day of the log.
    release_day: Vec<i32>,
    /// Items sorted by cell, then by rank.
    by_rank: Vec<u32>,
    /// Items sorted by cell, then by release.
    by_release: Vec<u32>,
    /// Cell → begin of its items in the two lists above; the next entry is the end.
    begins: Vec<usize>,
    /// Cell → itself, or the nearest cell that has items.
    resolved: Vec<usize>,
}

impl SimulatedCatalogue {
    pub(crate) fn new(seed: u64, items: u32, days: u32) -> Self {
        let mut catalogue = Self {
            key: key(seed, Purpose::Item),
            days: days as i32,
            release_day: Vec::with_capacity(items as usize),
            by_rank: (0..items).collect(),
            by_release: Vec::new(),
            begins: vec![0; CELLS + 1],
            resolved: Vec::new(),
        };
        let mut cell_of = Vec::with_capacity(items as usize);
        for item in 0..items {
            let drawn = catalogue.draw(item);
            catalogue.release_day.push(drawn.release_day);
            cell_of.push(drawn.cell.index() as u8);
            catalogue.begins[drawn.cell.index() + 1] += 1;
        }
        for cell in 0..CELLS {
            catalogue.begins[cell + 1] += catalogue.begins[cell];
        }
        let cell = |item: u32| cell_of[item as usize];
        catalogue.by_release.clone_from(&catalogue.by_rank);
        let rank = catalogue.key ^ 1;
        catalogue.by_rank.sort_unstable_by_key(|&item| (cell(item), mix64(rank, item.into())));
        let release_day = &catalogue.release_day;
        catalogue.by_release.sort_unstable_by_key(|&item| (cell(item), release_day[item as usize], item));
        // Every cell has a released item on the first day.
        for range in catalogue.begins.windows(2).filter(|range| range[0] < range[1]) {
            let oldest = catalogue.by_release[range[0]] as usize;
            catalogue.release_day[oldest] = catalogue.release_day[oldest].min(-1);
        }
        catalogue.resolved = (0..CELLS).map(|cell| nearest(&catalogue.begins, cell)).collect();
        catalogue
    }

    fn draw(&self, item: u32) -> Attributes {
        let mut random = Random::at(self.key, item.into());
        let position = ring_position(&mut random);
        let cell = Cell { genre: genre_at(position), language: language(&mut random) };
        let side = if random.chance(0.5) { 1.0 } else { -1.0 };
        let genres = [cell.genre, genre_at(position + side), genre_at(position - side)];
        let genre_count = random.run_length(0.4, 3);
        let back = if random.chance(NEW_SHARE) { NEW_DAYS } else { BACK_DAYS };
        let release_day = random.between((-back).into(), self.days.into()) as i32;
        Attributes { cell, genres, genre_count, release_day }
    }

    /// The day of its release, counted from the first day of the log.
    #[cfg(test)]
    pub(crate) fn release_day(&self, item: u32) -> i32 {
        self.release_day[item as usize]
    }

    /// How long the item plays, in milliseconds.
    pub(crate) fn length_ms(&self, item: u32) -> i64 {
        120_000 + (mix64(self.key ^ 2, item.into()) % 180_000) as i64
    }

    /// The item offered on `day` to a listener who wants `cell`.
    pub(crate) fn pick(&self, cell: Cell, day: i32, random: &mut Random) -> u32 {
        let cell = self.resolved[cell.index()];
        let range = self.begins[cell]..self.begins[cell + 1];
        let released = |item: u32| self.release_day[item as usize];
        let by_release = &self.by_release[range.clone()];
        if random.chance(RECENT_SHARE) {
            let age = -RECENT_AGE_DAYS * (1.0 - random.unit()).ln();
            let wanted = day - age.min(f64::from(BACK_DAYS)) as i32;
            let end = by_release.partition_point(|&item| released(item) <= wanted);
            if end > 0 {
                // Of the two latest candidates, the one with the better rank.
                let rank = |item: u32| mix64(self.key ^ 1, item.into());
                let (a, b) = (by_release[end - 1], by_release[end.saturating_sub(2)]);
                return if rank(a) < rank(b) { a } else { b };
            }
        }
        let by_rank = &self.by_rank[range];
        for _ in 0..TRIES_MAX {
            // Inversion of a Zipf law with exponent 1.
            let rank = ((by_rank.len() + 1) as f64).powf(random.unit()) as usize - 1;
            let item = by_rank[rank.min(by_rank.len() - 1)];
            if released(item) <= day {
                return item;
            }
        }
        by_release[0]
    }

    /// Writes the items as JSON Lines.
    pub(crate) fn write(&self, start: NaiveDate, out: &mut impl Write) -> io::Result<()> {
        let start_ms = super::midnight_ms(start);
        for (item, &release_day) in (0..).zip(&self.release_day) {
            let drawn = self.draw(item);
            let release_ts = start_ms + i64::from(release_day) * DAY_MS;
            write!(
                out,
                r#"{{"item_id":"t{item}","title":"Track {item}","release_ts":{release_ts},"genre":["#
            )?;
            for (at, &genre) in drawn.genres[..drawn.genre_count].iter().enumerate() {
                write!(out, "{}\"{}\"", if at == 0 { "" } else { "," }, GENRES[genre])?;
            }
            writeln!(out, r#"],"language":["{}"]}}"#, LANGUAGES[drawn.cell.language])?;
        }
        Ok(())
    }
}

/// The cell itself, or the nearest with items: along the ring first, then in another language.
fn nearest(begins: &[usize], cell: usize) -> usize {
    let (language, genre) = (cell / GENRES.len(), cell % GENRES.len());
    let distance = |other: usize| {
        let along = (other % GENRES.len()).abs_diff(genre);
        let across = (other / GENRES.len()).abs_diff(language);
        (across, along.min(GENRES.len() - along), other)
    };
    (0..CELLS)
        .filter(|&other| begins[other] < begins[other + 1])
        .min_by_key(|&other| distance(other))
        .unwrap_or(cell)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_is_offered_before_its_release(seed: u64, items in 1u32..400, days in 1u32..60) {
            let catalogue = SimulatedCatalogue::new(seed, items, days);
            let mut random = Random::at(seed, 0);
            for nth in 0..400 {
                let cell = Cell { genre: nth % GENRES.len(), language: nth % LANGUAGES.len() };
                let day = random.between(0, days.into()) as i32;
                let item = catalogue.pick(cell, day, &mut random);
                prop_assert!(catalogue.release_day(item) <= day);
            }
        }
    }

    #[test]
    fn offers_have_the_genre_and_language_that_were_asked_for() {
        let catalogue = SimulatedCatalogue::new(1, 20_000, 30);
        let mut random = Random::at(1, 0);
        for nth in 0..1_000 {
            let cell = Cell { genre: nth % GENRES.len(), language: nth % LANGUAGES.len() };
            let item = catalogue.pick(cell, 10, &mut random);
            assert_eq!(catalogue.draw(item).cell, cell);
        }
    }

    #[test]
    fn releases_are_popular_and_fade() {
        let (catalogue, day) = (SimulatedCatalogue::new(1, 20_000, 30), 20);
        let mut random = Random::at(1, 0);
        let mut picks = vec![0u32; 20_000];
        for nth in 0..200_000 {
            let cell = Cell { genre: nth % GENRES.len(), language: nth % LANGUAGES.len() };
            picks[catalogue.pick(cell, day, &mut random) as usize] += 1;
        }
        // Age in days → mean number of picks of its items.
        let mean = |from: i32, to: i32| {
            let of_age = |item: &u32| (from..to).contains(&(day - catalogue.release_day(*item)));
            let items: Vec<u32> = (0..20_000).filter(of_age).collect();
            items.iter().map(|&item| f64::from(picks[item as usize])).sum::<f64>() / items.len() as f64
        };
        let (new, older, old) = (mean(0, 7), mean(21, 35), mean(200, 700));
        assert!(new > 1.5 * older && older > 1.5 * old, "{new} {older} {old}");
        assert!(mean(-9, 0) == 0.0, "nothing is picked before its release");
    }

    #[test]
    fn every_line_is_an_item() {
        let catalogue = SimulatedCatalogue::new(1, 500, 30);
        let mut lines = Vec::new();
        catalogue.write(NaiveDate::from_ymd_opt(2026, 1, 1).unwrap(), &mut lines).unwrap();
        let lines = String::from_utf8(lines).unwrap();
        assert_eq!(lines.lines().count(), 500);
        let mut several = 0;
        for (item, line) in lines.lines().enumerate() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["item_id"], format!("t{item}"));
            let genres = value["genre"].as_array().unwrap();
            assert!((1..=3).contains(&genres.len()) && value["language"].as_array().unwrap().len() == 1);
            several += usize::from(genres.len() > 1);
        }
        assert!((100..300).contains(&several), "{several}");
    }
}
