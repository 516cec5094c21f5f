//! Latency of one request (one user) on one core, with the model and the search timed separately (§3.4.2).
//!
//! ```sh
//! cargo run --release -p trainer --example request_latency                    # a catalogue of 12,000 items
//! cargo run --release -p trainer --example request_latency -- --items 1000000 # the graph takes half an hour to build
//! ```
//!
//! The model has the paper's industrial size (d = 128, L = 3) and random values, which do not affect its speed. Items are vectors
//! around random centres. The last table compares one pass for 8 conditions with 8 passes and with one pass without a condition;
//! they run in turn, so other load affects all alike.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::Parser;
use schemas::config::{Age, Model, Sft, Span};
use schemas::hash::mix64;
use trainer::data::conditions::{Carriers, KnownConditions};
use trainer::data::vocabulary::Vocabulary;
use trainer::data::{Catalogue, ConditionRow, ItemIndex};
use trainer::device::Backend;
use trainer::models::SequenceModel;
use trainer::serve::{
    Answers, DotProduct, GraphSetting, ListFilter, ListQuery, Read, Reading, Recommender as _, Serving,
};

/// The program's allocator; with the system's, page faults take a third of the model part.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const D: usize = 128;
const CENTRES: u64 = 1_000;
const DAY_MS: i64 = 86_400_000;

/// Measure the latency of one request.
#[derive(Debug, Parser)]
struct Args {
    /// Items in the catalogue.
    #[arg(long, default_value_t = 12_000)]
    items: usize,
    /// Requests per measurement.
    #[arg(long, default_value_t = 300)]
    requests: usize,
    /// Maximum length of a list.
    #[arg(long, default_value_t = 50)]
    k: usize,
    /// Items that the graph finds; 0 skips the graph.
    #[arg(long, default_value_t = 200)]
    ef: usize,
}

fn main() -> anyhow::Result<()> {
    // SAFETY: no thread has been started.
    unsafe { trainer::init_threads() };
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let bench = Bench::new(args.items)?;
    let asked = bench.asked(None)?;
    println!("model part, one core, µs");
    println!("  history   P   p50   p99");
    for events in [50, 200] {
        for p in [0, 1, 8] {
            let times = measure(args.requests, |i| {
                black_box(read(&asked, &bench.history(i, events), &conditions(p))?.len());
                Ok(())
            })?;
            println!("  {events:>7}  {p:>2}  {}", times.p50_p99());
        }
    }
    println!("search part, {} items, k = {}, one core, µs", args.items, args.k);
    println!("  search    P     p50     p99");
    let allowed: Vec<bool> = (0..=args.items).map(|item| item > 0).collect();
    for p in [1, 8] {
        let states = bench.states(&asked, p)?;
        let times = measure(args.requests, |i| {
            black_box(lists(&*states[i % states.len()], &allowed, |answers, asked| {
                answers.best(asked, args.k)
            })?);
            Ok(())
        })?;
        println!("  exact    {p:>2}  {}", times.p50_p99());
    }
    if args.ef > 0 {
        let started = Instant::now();
        // Only this part uses all cores.
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        let graph = GraphSetting { ef: args.ef, retrievable: &allowed };
        let graph = pool.install(|| bench.asked(Some(graph)))?;
        let built = started.elapsed();
        for p in [1, 8] {
            let states = bench.states(&graph, p)?;
            let times = measure(args.requests, |i| {
                black_box(lists(&*states[i % states.len()], &allowed, |answers, asked| {
                    answers.approximate(asked, args.k)
                }));
                Ok(())
            })?;
            println!("  hnsw     {p:>2}  {}", times.p50_p99());
        }
        let (mut found, mut all) = (0, 0);
        for answers in bench.states(&graph, 1)? {
            let exact = lists(&*answers, &allowed, |answers, asked| answers.best(asked, args.k))?.remove(0);
            let near = lists(&*answers, &allowed, |answers, asked| answers.approximate(asked, args.k));
            let near = near.unwrap_or_default().remove(0).unwrap_or_default();
            all += exact.len();
            found += exact.iter().filter(|e| near.iter().any(|n| n.item == e.item)).count();
        }
        let recall = found as f64 / all as f64;
        println!("  graph of ef {}: recall@{} {recall:.3}, built in {:.0?}", args.ef, args.k, built);
    }
    bench.compare(&asked, args.requests)
}

/// Requests one list per answer, of the items that are `allowed`.
fn lists<R>(
    answers: &dyn Answers,
    allowed: &[bool],
    ask: impl FnOnce(&dyn Answers, &[ListQuery<'_>]) -> R,
) -> R {
    let filters = [ListFilter { allowed, seen: &[], carrying: None }];
    let asked: Vec<ListQuery<'_>> =
        (0..answers.len()).map(|answer| ListQuery { answer, filters: &filters }).collect();
    ask(answers, &asked)
}

/// Events of a history, as the model reads them.
struct History {
    items: Vec<ItemIndex>,
    ts: Vec<i64>,
    visible: Vec<u32>,
}

struct Bench {
    model: SequenceModel,
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
        // Eight conditions, each carried by 30 % of the items.
        let age = |i: i64| Age {
            min_age: Some(Span { ms: i * 10 * DAY_MS }),
            max_age: Some(Span { ms: (i + 3) * 10 * DAY_MS }),
        };
        let derived: BTreeMap<String, Age> = (0..8).map(|i| (format!("age-{i}"), age(i))).collect();
        let names: Vec<String> = derived.keys().cloned().collect();
        let conditions = KnownConditions::new(&names, &derived, &catalogue);
        let carriers = Carriers::new(&conditions, &derived, &catalogue);
        // All items share the rows of the id table; their vectors are generated below.
        let config =
            Model { d: D, layers: 3, hash_buckets: 1_000, attributes: Vec::new(), ..Model::default() };
        let vocabulary =
            Vocabulary::new(&config, &catalogue, &vec![0; items + 1]).with_conditions(conditions);
        let model = SequenceModel::new(&config, &Sft::default(), Arc::new(vocabulary), 1, &Backend::CPU)?;
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
        let item = |e: usize| ItemIndex::new(1 + (mix64(i as u64, e as u64) % self.items as u64) as u32);
        History {
            items: (0..events).map(item).collect(),
            ts: (0..events as i64).map(|e| 100 * DAY_MS + e * 60_000).collect(),
            visible: vec![0; events],
        }
    }

    /// Returns the model, prepared for serving.
    fn asked<'a>(&'a self, graph: Option<GraphSetting<'a>>) -> anyhow::Result<DotProduct<'a>> {
        let serving =
            Serving { items: self.items, carriers: Some(&self.carriers), seed: 1, batch: usize::MAX, graph };
        Ok(DotProduct::with_vectors(&self.model, self.vectors.clone(), serving)?)
    }

    /// Returns answers to search in, for 50 histories.
    fn states<'a>(
        &self,
        asked: &'a DotProduct<'_>,
        p: u32,
    ) -> candle_core::Result<Vec<Box<dyn Answers + 'a>>> {
        (0..50).map(|i| read(asked, &self.history(i, 50), &conditions(p))).collect()
    }

    /// Times eight conditions in one pass, in eight passes, and one pass without a condition.
    fn compare(&self, asked: &DotProduct<'_>, requests: usize) -> anyhow::Result<()> {
        println!("model part in turn, p50 in µs");
        println!("  history  none  8 in one pass  8 passes  one pass / none  8 passes / one pass");
        for events in [50, 200] {
            let mut times = [Times::default(), Times::default(), Times::default()];
            let all = conditions(8);
            for i in 0..requests + WARM_UP {
                let history = self.history(i, events);
                let mut took = [0.0; 3];
                for (which, took) in took.iter_mut().enumerate() {
                    let started = Instant::now();
                    match which {
                        0 => drop(black_box(read(asked, &history, &[None])?)),
                        1 => drop(black_box(read(asked, &history, &all)?)),
                        _ => {
                            for condition in &all {
                                drop(black_box(read(asked, &history, &[*condition])?));
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

/// Returns `p` conditions, or `None` alone if `p` is 0.
fn conditions(p: u32) -> Vec<Option<ConditionRow>> {
    if p == 0 { vec![None] } else { (0..p).map(|row| Some(row.into())).collect() }
}

/// Runs the model part of a request.
fn read<'a>(
    asked: &'a DotProduct<'_>,
    history: &History,
    conditions: &[Option<ConditionRow>],
) -> candle_core::Result<Box<dyn Answers + 'a>> {
    let length = history.items.len();
    let reads: Vec<Read> = conditions.iter().map(|&condition| Read { length, condition }).collect();
    asked.read(&[Reading {
        items: &history.items,
        ts: &history.ts,
        visible: &history.visible,
        reads: &reads,
    }])
}

/// Requests before timing starts.
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

/// Durations, microseconds.
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
