//! The comparison as tables.

use std::fmt;

use super::{Comparison, GroupResult, HorizonCurve, Interval, Spread};
use crate::judge::{METRICS, OF_RANKS, Protocol, rate};

impl fmt::Display for Comparison {
    /// Formats the comparison as tables; each difference to the first run stands below the run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.results.iter().map(|r| r.label.chars().count());
        let width = labels.max().unwrap_or(0).max("difference".len());
        // If nothing is hidden before a target, both protocols give the same numbers.
        let of = |protocol| {
            let results = self.results.iter().filter(move |r| r.protocol == protocol);
            // Compares bits, so that NaN equals NaN.
            let bits = |r: &GroupResult| {
                let bits = |spread: &Spread| spread.runs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                r.metrics.values().each_ref().map(bits)
            };
            results.map(|r| (&r.label, r.filter_seen, bits(r))).collect::<Vec<_>>()
        };
        let same = of(Protocol::Standard) == of(Protocol::AsServed);
        let shown = |protocol| !same || protocol == Protocol::Standard;
        if same && !self.results.is_empty() {
            writeln!(f, "nothing is hidden before a target: as served, the numbers are the same")?;
        }
        let slices = self.results.chunk_by(|a, b| (a.protocol, a.filter_seen) == (b.protocol, b.filter_seen));
        for slice in slices.filter(|slice| shown(slice[0].protocol)) {
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
            let heading: String =
                METRICS[..OF_RANKS].iter().map(|metric| format!("{:<27}", metric.label())).collect();
            writeln!(f, "  {:width$}  {}", "run", heading.trim_end())?;
            for result in slice {
                write_result(f, result, width)?;
            }
        }
        let mut horizon =
            self.horizon.iter().filter(|curve| curve.filter_seen && shown(curve.protocol)).peekable();
        while let Some(first) = horizon.next() {
            writeln!(
                f,
                "{}, {}, seen items filtered: HR@10 of the next events of {} users, by one prediction",
                self.split,
                first.protocol.name(),
                first.users
            )?;
            write_curve(f, first, first)?;
            while let Some(curve) = horizon.next_if(|curve| curve.protocol == first.protocol) {
                write_curve(f, curve, first)?;
            }
        }
        // A single run has no differences; only a horizon curve has intervals.
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
    for spread in result.metrics.values() {
        let text = match spread.sd {
            Some(sd) if spread.mean.is_finite() => format!("{:.4} ± {sd:.4}", spread.mean),
            _ => rate(Some(spread.mean)),
        };
        line += &format!("{text:<27}");
    }
    writeln!(f, "{}", line.trim_end())?;
    if let Some(difference) = &result.difference {
        let mut line = format!("  {:width$}  ", "difference");
        for d in difference.values() {
            line += &format!("{:<27}", signed(*d));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Writes one group's curve and its difference to that of `first`.
fn write_curve(f: &mut fmt::Formatter<'_>, curve: &HorizonCurve, first: &HorizonCurve) -> fmt::Result {
    let heading = match curve.difference {
        Some(_) => format!("{:<27}difference to `{}`", format!("`{}`", curve.label), first.label),
        None => format!("`{}`", curve.label),
    };
    writeln!(f, "        {heading}")?;
    let rates = &curve.rates;
    let names = (1..=rates.hr_10.len()).map(|h| h.to_string()).chain(["mean".into()]);
    for (h, name) in names.enumerate() {
        let rate = rates.hr_10.get(h).unwrap_or(&rates.mean_hr_10);
        let mut line = match rate.value.is_finite() {
            true => format!("  {name:>4}  {:.4} [{:.4}, {:.4}]", rate.value, rate.low, rate.high),
            false => format!("  {name:>4}  –"),
        };
        if let Some(difference) = &curve.difference {
            let d = difference.hr_10.get(h).unwrap_or(&difference.mean_hr_10);
            line = format!("{line:<35}{}", signed(*d));
        }
        writeln!(f, "{line}")?;
    }
    Ok(())
}

/// Formats a difference with its interval in 25 characters; a dash if it is NaN.
pub(super) fn signed(d: Interval) -> String {
    if !d.value.is_finite() {
        return "–".into();
    }
    format!("{:+.4} [{:+.4}, {:+.4}]", d.value, d.low, d.high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::PerMetric;

    #[test]
    fn protocols_that_agree_are_shown_once() {
        let result = |protocol, value| GroupResult {
            label: "a".into(),
            runs: vec!["a".into()],
            protocol,
            filter_seen: true,
            users: 3,
            targets: 3,
            metrics: PerMetric::from_fn(|_| Spread::new(vec![value])),
            difference: None,
        };
        let table = |as_served| {
            let results = vec![result(Protocol::Standard, 0.5), result(Protocol::AsServed, as_served)];
            let (horizon, learning) = (Vec::new(), Vec::new());
            Comparison { split: "test".into(), resamples: 1, seed: 1, results, horizon, learning }.to_string()
        };
        assert!(!table(0.5).contains("test, as-served") && table(0.5).contains("the numbers are the same"));
        assert!(table(0.25).contains("test, as-served") && !table(0.25).contains("the numbers are the same"));
        // Over no targets there is no number.
        let result = |protocol| GroupResult { targets: 0, ..result(protocol, f64::NAN) };
        let results = vec![result(Protocol::Standard), result(Protocol::AsServed)];
        let (horizon, learning) = (Vec::new(), Vec::new());
        let none = Comparison { split: "test".into(), resamples: 1, seed: 1, results, horizon, learning };
        let table = none.to_string();
        assert!(table.contains('–') && !table.contains("0000") && !table.contains("NaN"), "{table}");
        assert!(!table.contains("test, as-served"), "{table}");
        let json = serde_json::to_value(&none).unwrap();
        assert!(json["results"][0]["metrics"]["hr_10"]["mean"].is_null(), "{json}");
    }
}
