//! The latency of one request (one user) on one core, its model part and its search part apart (§3.4.2).
//!
//! ```sh
//! cargo run --release -p trainer --example request_latency                    # a catalogue of 12,000 items
//! cargo run --release -p trainer --example request_latency -- --items 1000000 # the graph takes half an hour to build
//! ```
//!
//! The model is the paper's industrial one (d = 128, L = 3) with random values: its speed does not depend on them. Items
//! are vectors around random centres. The last table holds one pass for 8 conditions against one pass for each, and
//! against one pass without a condition, in turn, so that what else the machine does disturbs all alike.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::Parser;
use instant_distance::Search;
use schemas::config::{Age, MaskMode, Model, Sft, Span};
use schemas::hash::mix64;
use trainer::data::Catalogue;
use trainer::data::conditions::{Carriers, Conditions};
use trainer::data::vocabulary::Vocabulary;
use trainer::device::Backend;
use trainer::models::ClimberPilot;
use trainer::serve::{Asked, Candidates, History, Hnsw, Question, hidden};

/// As the program has it: with the system's, a third of the model part is page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const D: usize = 128;
const CENTRES: u64 = 1_000;
const DAY_MS: i64 = 86_400_000;

/// Measure the latency of one request.
#[derive(Debug, Parser)]
struct Args {
    /// Items of the catalogue.
    #[arg(long, default_value_t = 12_000)]
    items: usize,
    /// Requests of each measurement.
    #[arg(long, default_value_t = 300)]
    requests: usize,
    /// Length of a list.
    #[arg(long, default_value_t = 50)]
    k: usize,
    /// Items that the graph finds; 0 leaves it out.
    #[arg(long, default_value_t = 200)]
    ef: usize,
}

fn main() -> anyhow::Result<()> {
    // SAFETY: nothing has started a thread.
    unsafe { trainer::init_threads() };
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let bench = Bench::new(args.items)?;
    println!("model part, one core, µs");
    println!("  history   P   p50   p99");
    for events in [50, 200] {
        for p in [0, 1, 8] {
            let times = measure(args.requests, |i| {
                black_box(bench.hidden(i, events, p)?);
                Ok(())
            })?;
            println!("  {events:>7}  {p:>2}  {}", times.p50_p99());
        }
    }
    println!("search part, {} items, k = {}, one core, µs", args.items, args.k);
    println!("  search    P     p50     p99");
    let allowed: Vec<bool> = (0..=args.items).map(|item| item > 0).collect();
    let candidates = Candidates::new(bench.vectors.flatten_all()?.to_vec1()?, D, 1)?;
    for p in [1, 8] {
        let states = bench.states(p)?;
        let times = measure(args.requests, |i| {
            let asked: Vec<Question<'_>> =
                states[i % states.len()].chunks(D).map(|h| question(h, &allowed)).collect();
            black_box(candidates.search(&asked, args.k)?);
            Ok(())
        })?;
        println!("  exact    {p:>2}  {}", times.p50_p99());
    }
    if args.ef > 0 {
        let started = Instant::now();
        // The only part that uses all cores.
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        let graph = pool.install(|| Hnsw::new(&candidates, &allowed, args.ef));
        let built = started.elapsed();
        let mut search = Search::default();
        for p in [1, 8] {
            let states = bench.states(p)?;
            let times = measure(args.requests, |i| {
                for vector in states[i % states.len()].chunks(D) {
                    black_box(graph.search(&question(vector, &allowed), args.k, &mut search));
                }
                Ok(())
            })?;
            println!("  hnsw     {p:>2}  {}", times.p50_p99());
        }
        let (mut found, mut all) = (0, 0);
        for vector in bench.states(1)?.iter().map(Vec::as_slice) {
            let exact = candidates.search(&[question(vector, &allowed)], args.k)?.remove(0);
            let near = graph.search(&question(vector, &allowed), args.k, &mut search).unwrap_or_default();
            all += exact.len();
            found += exact.iter().filter(|e| near.iter().any(|n| n.item == e.item)).count();
        }
        let recall = found as f64 / all as f64;
        println!("  graph of ef {}: recall@{} {recall:.3}, built in {:.0?}", args.ef, args.k, built);
    }
    bench.compare(args.requests)
}

fn question<'a>(vector: &'a [f32], allowed: &'a [bool]) -> Question<'a> {
    Question { vector, allowed, seen: &[] }
}

struct Bench {
    model: ClimberPilot,
    carriers: Carriers,
    vectors: Tensor,
    items: usize,
}

impl Bench {
    fn new(items: usize) -> anyhow::Result<Self> {
        let mut catalogue = Catalogue::default();
        catalogue.item_ids = (0..=items).map(|i| i.to_string()).collect();
        catalogue.active = (0..=items).map(|i| i > 0).collect();
        catalogue.release_ts =
            (0..=items as u64).map(|i| Some((mix64(3, i) % 100) as i64 * DAY_MS)).collect();
        // Eight conditions, each carried by three tenths of the items.
        let age = |i: i64| Age {
            min_age: Some(Span { ms: i * 10 * DAY_MS }),
            max_age: Some(Span { ms: (i + 3) * 10 * DAY_MS }),
        };
        let derived: BTreeMap<String, Age> = (0..8).map(|i| (format!("age-{i}"), age(i))).collect();
        let names: Vec<String> = derived.keys().cloned().collect();
        let conditions = Conditions::new(&names, &derived, &catalogue);
        let carriers = Carriers::new(&conditions, &derived, &catalogue);
        // The id table does not matter here: all items share its rows, and the vectors are made below.
        let config =
            Model { d: D, layers: 3, hash_buckets: 1_000, attributes: Vec::new(), ..Model::default() };
        let vocabulary =
            Vocabulary::new(&config, &catalogue, &vec![0; items + 1]).with_conditions(conditions);
        let model = ClimberPilot::new(&config, &Sft::default(), Arc::new(vocabulary), 1, &Backend::CPU)?;
        let noise = |what: u64, i: u64| (mix64(what, i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let value = |i: u64| {
            let (item, column) = (i / D as u64, i % D as u64);
            noise(1, mix64(5, item) % CENTRES * D as u64 + column) + 0.7 * noise(2, i)
        };
        let values: Vec<f32> = (0..(items * D) as u64).map(value).collect();
        let vectors = Tensor::from_vec(values, (items, D), &Device::Cpu)?;
        Ok(Self { model, carriers, vectors, items })
    }

    fn history(&self, i: usize, events: usize) -> History {
        let item = |e: usize| 1 + (mix64(i as u64, e as u64) % self.items as u64) as u32;
        History {
            items: (0..events).map(item).collect(),
            ts: (0..events as i64).map(|e| 100 * DAY_MS + e * 60_000).collect(),
            visible: Vec::new(),
        }
    }

    /// The model part of request `i`: without a condition for `p = 0`.
    fn hidden(&self, i: usize, events: usize, p: u32) -> candle_core::Result<Vec<f32>> {
        let conditions: Vec<Option<u32>> = if p == 0 { vec![None] } else { (0..p).map(Some).collect() };
        self.ask(&self.history(i, events), &conditions)
    }

    fn ask(&self, history: &History, conditions: &[Option<u32>]) -> candle_core::Result<Vec<f32>> {
        let asked = [Asked { history, conditions }];
        hidden(&self.model, (MaskMode::Gather, &self.carriers), &self.vectors, &asked)
    }

    /// Hidden states to search with.
    fn states(&self, p: u32) -> candle_core::Result<Vec<Vec<f32>>> {
        (0..50).map(|i| self.hidden(i, 50, p)).collect()
    }

    /// Eight conditions in one pass, in eight, and none.
    fn compare(&self, requests: usize) -> anyhow::Result<()> {
        println!("model part in turn, p50 in µs");
        println!("  history  none  8 in one pass  8 passes  one pass / none  8 passes / one pass");
        for events in [50, 200] {
            let mut times = [Times::default(), Times::default(), Times::default()];
            let all: Vec<Option<u32>> = (0..8).map(Some).collect();
            for i in 0..requests + WARM_UP {
                let history = self.history(i, events);
                let mut took = [0.0; 3];
                for (which, took) in took.iter_mut().enumerate() {
                    let started = Instant::now();
                    match which {
                        0 => drop(black_box(self.ask(&history, &[None])?)),
                        1 => drop(black_box(self.ask(&history, &all)?)),
                        _ => {
                            for condition in &all {
                                drop(black_box(self.ask(&history, &[*condition])?));
                            }
                        }
                    }
                    *took = started.elapsed().as_secs_f64() * 1e6;
                }
                if i >= WARM_UP {
                    times.iter_mut().zip(took).for_each(|(times, took)| times.0.push(took));
                }
            }
            let [none, together, apart] = times.map(|times| times.quantile(0.5));
            let (to_none, to_apart) = (together / none, apart / together);
            println!(
                "  {events:>7}  {none:>4.0}  {together:>13.0}  {apart:>8.0}  {to_none:>15.2}  {to_apart:>20.2}"
            );
        }
        Ok(())
    }
}

/// Requests before the first that counts.
const WARM_UP: usize = 20;

fn measure(requests: usize, mut request: impl FnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<Times> {
    let mut times = Times::default();
    for i in 0..requests + WARM_UP {
        let started = Instant::now();
        request(i)?;
        if i >= WARM_UP {
            times.0.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(times)
}

/// In microseconds.
#[derive(Debug, Default)]
struct Times(Vec<f64>);

impl Times {
    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * q).round() as usize]
    }

    fn p50_p99(&self) -> String {
        format!("{:>6.0}  {:>6.0}", self.quantile(0.5), self.quantile(0.99))
    }
}
