use std::fmt;

use super::{Comparison, GroupResult};

impl fmt::Display for Comparison {
    /// As a table for people: below each run its difference to the first one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.results.iter().map(|r| r.label.chars().count());
        let width = labels.max().unwrap_or(0).max("difference".len());
        let slices = self.results.chunk_by(|a, b| (a.protocol, a.filter_seen) == (b.protocol, b.filter_seen));
        for slice in slices {
            let first = &slice[0];
            writeln!(
                f,
                "{}, {}, seen items {}: {} targets of {} users",
                self.split,
                first.protocol.name(),
                if first.filter_seen { "filtered" } else { "kept" },
                first.targets,
                first.users
            )?;
            let heading = ["HR@10", "HR@20", "HR@50", "NDCG@10"].map(|name| format!("{name:<27}")).concat();
            writeln!(f, "  {:width$}  {}", "run", heading.trim_end())?;
            for result in slice {
                write_result(f, result, width)?;
            }
        }
        for curve in self.horizon.iter().filter(|curve| curve.filter_seen) {
            writeln!(
                f,
                "{}, {}, seen items filtered, `{}`: HR@10 of the next events of {} users, by one prediction",
                self.split,
                curve.protocol.name(),
                curve.label,
                curve.users
            )?;
            for (h, rate) in curve.hr_10.iter().enumerate() {
                writeln!(f, "  {:>2}  {:.4} [{:.4}, {:.4}]", h + 1, rate.value, rate.low, rate.high)?;
            }
        }
        // One run alone differs from nothing; only its horizon curve has intervals.
        if self.results.iter().all(|result| result.label == self.results[0].label) && self.horizon.is_empty()
        {
            return Ok(());
        }
        writeln!(
            f,
            "differences to the first run, [95 % interval] of the paired bootstrap over users ({} resamples, seed {})",
            self.resamples, self.seed
        )
    }
}

fn write_result(f: &mut fmt::Formatter<'_>, result: &GroupResult, width: usize) -> fmt::Result {
    let mut line = format!("  {:width$}  ", result.label);
    for spread in result.metrics.each() {
        let text = match spread.sd {
            Some(sd) => format!("{:.4} ± {sd:.4}", spread.mean),
            None => format!("{:.4}", spread.mean),
        };
        line += &format!("{text:<27}");
    }
    writeln!(f, "{}", line.trim_end())?;
    if let Some(difference) = &result.difference {
        let mut line = format!("  {:width$}  ", "difference");
        for d in difference.each() {
            line += &format!("{:<27}", format!("{:+.4} [{:+.4}, {:+.4}]", d.value, d.low, d.high));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
