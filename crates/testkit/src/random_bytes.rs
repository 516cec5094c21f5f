//! Nearly valid inputs, for tests of code that reads bytes from outside.
//!
//! libFuzzer gets the same entry points from the workspace in `fuzz/` and is guided by coverage; these inputs need only a stable
//! compiler, and so run with every test.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::time::Instant;

/// Environment variable with the number of changed inputs for each parser; 3,000 by default.
pub const INPUTS: &str = "CLIMBER_PILOT_INPUTS";

/// Environment variable, set in the process that runs a single test.
const ALONE: &str = "CLIMBER_PILOT_INPUTS_ALONE";

const INPUTS_DEFAULT: u64 = 3_000;
/// Maximum bytes of an input, unless twice its seed's length is more.
const BYTES_MAX: usize = 512;
/// Maximum growth of the process over the inputs, in bytes: room for the allocator's pools, but not for data kept of each input.
const GROWTH_MAX: u64 = 64 << 20;

/// Random changes of seeds, determined by the number of inputs.
struct Mutator<'a> {
    state: u64,
    seeds: &'a [&'a [u8]],
    tokens: &'a [&'a [u8]],
    input: Vec<u8>,
}

impl Mutator<'_> {
    /// Returns a random number below `bound`, which must not be 0 (xorshift64*).
    fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((random * bound as u64) >> 32) as usize
    }

    fn next(&mut self) -> &[u8] {
        let seed = self.below(self.seeds.len());
        self.input.clear();
        self.input.extend_from_slice(self.seeds[seed]);
        for _ in 0..self.below(6) {
            self.change();
        }
        self.input.truncate(BYTES_MAX.max(2 * self.seeds[seed].len()));
        &self.input
    }

    fn change(&mut self) {
        let len = self.input.len();
        let at = self.below(len + 1);
        let end = at + self.below((len - at).min(16) + 1);
        match self.below(8) {
            0 if at < len => self.input[at] ^= 1 << self.below(8),
            1 if at < len => self.input[at] = self.below(256) as u8,
            2 => drop(self.input.drain(at..end)),
            3 => self.input.truncate(at),
            4 => {
                let piece = self.input[at..end].to_vec();
                self.input.splice(at..at, piece);
            }
            5 => {
                let other = self.seeds[self.below(self.seeds.len())];
                let begin = self.below(other.len() + 1);
                let piece = &other[begin..begin + self.below((other.len() - begin).min(64) + 1)];
                self.input.splice(at..end, piece.iter().copied());
            }
            6 => {
                let random: Vec<u8> = (0..self.below(9)).map(|_| self.below(256) as u8).collect();
                self.input.splice(at..end, random);
            }
            _ if !self.tokens.is_empty() => {
                let token = self.tokens[self.below(self.tokens.len())];
                self.input.splice(at..end, token.iter().copied());
            }
            _ => {}
        }
    }
}

/// Calls `parse` with the seeds and then with changed ones, as many as [`INPUTS`] says; `tokens` are inserted into them. Prints
/// an input that makes `parse` panic; `name` labels messages. Runs in a process of its own with only the calling test, because
/// other tests also grow.
///
/// # Panics
///
/// If `parse` panics, if the process grows by 64 MiB or more after the first tenth of the inputs, or if it cannot be started.
pub fn drive(name: &str, seeds: &[&[u8]], tokens: &[&[u8]], mut parse: impl FnMut(&[u8])) {
    // The thread of a test is named after it.
    let test = std::thread::current().name().filter(|&name| name != "main").map(str::to_owned);
    if let Some(test) = test.filter(|_| std::env::var_os(ALONE).is_none()) {
        let program =
            std::env::current_exe().unwrap_or_else(|e| panic!("where this program is, is not known: {e}"));
        let run = Command::new(program).args(["--exact", &test, "--nocapture"]).env(ALONE, "1").output();
        let run = run.unwrap_or_else(|e| panic!("{name} cannot be tried in a process of its own: {e}"));
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && String::from_utf8_lossy(&run.stdout).contains(" 1 passed"), "{said}");
        eprintln!("{said}");
        return;
    }
    let asked = std::env::var(INPUTS).ok().and_then(|inputs| inputs.parse().ok());
    let inputs: u64 = asked.unwrap_or(INPUTS_DEFAULT);
    let mut mutator = Mutator { state: 0x9e37_79b9_7f4a_7c15 ^ inputs, seeds, tokens, input: Vec::new() };
    let mut give = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| parse(input))) {
            eprintln!("{name} panics at b\"{}\"", input.escape_ascii());
            resume_unwind(panic);
        }
    };
    let began = Instant::now();
    seeds.iter().for_each(|seed| give(seed));
    let mut settled = None;
    for n in 0..inputs {
        if n == inputs / 10 {
            settled = resident();
        }
        give(mutator.next());
    }
    let grown = settled.zip(resident()).map(|(before, after)| after.saturating_sub(before));
    if asked.is_some() {
        let seconds = began.elapsed().as_secs_f64();
        eprintln!("{name}: {inputs} inputs in {seconds:.0} s, grown by {} KiB", grown.unwrap_or(0) >> 10);
    }
    assert!(grown.unwrap_or(0) < GROWTH_MAX, "{name} grows: {grown:?} bytes in {inputs} inputs");
}

/// Returns the bytes of this process in memory, if the system reports them.
fn resident() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
