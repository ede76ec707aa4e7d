//! One figure of a bench: what was measured, what it is compared with, and what it should be.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// One line of a bench's output.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured, in words without a comma.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit; empty for a count or a ratio.
    pub unit: &'static str,
    /// The floor, the peer, or what else it is to be read with; taken in the same run.
    pub beside: String,
    /// What it should be; none for a figure that is only shown.
    pub target: Option<Target>,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Figure {
    /// A figure that is only shown.
    pub fn new(name: &str, value: f64, unit: &'static str) -> Figure {
        Figure { name: name.to_owned(), value, unit, beside: String::new(), target: None }
    }

    /// With what it is compared.
    pub fn beside(mut self, beside: impl Into<String>) -> Figure {
        self.beside = beside.into();
        self
    }

    /// With the most that it may be.
    pub fn at_most(mut self, target: f64) -> Figure {
        self.target = Some(Target::AtMost(target));
        self
    }

    /// With the least that it may be.
    pub fn at_least(mut self, target: f64) -> Figure {
        self.target = Some(Target::AtLeast(target));
        self
    }

    /// Whether it has a target, and misses it.
    pub fn is_missed(&self) -> bool {
        self.target.is_some_and(|target| !target.is_met_by(self.value))
    }

    fn verdict(&self) -> &'static str {
        match self.target {
            None => "shown",
            Some(_) if self.is_missed() => "missed",
            Some(_) => "met",
        }
    }
}

impl Target {
    fn is_met_by(self, value: f64) -> bool {
        // What is no number meets neither.
        match self {
            Target::AtMost(most) => value <= most,
            Target::AtLeast(least) => value >= least,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Target::AtMost(most) => format!("at most {}", number(most, unit)),
            Target::AtLeast(least) => format!("at least {}", number(least, unit)),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.map(|target| target.text(self.unit));
        let beside = if self.beside.is_empty() { "-" } else { &self.beside };
        write!(
            f,
            "{:<44} {:>10} | {beside} | {} | {}",
            self.name,
            number(self.value, self.unit),
            target.as_deref().unwrap_or("-"),
            self.verdict()
        )
    }
}

/// A number as it is printed: as many digits as mean something.
pub fn number(value: f64, unit: &str) -> String {
    let digits = match unit {
        _ if value.fract() == 0.0 => 0,
        "ms" | "MiB" | "/s" => 1,
        _ => 3,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

/// All figures, for programs.
pub fn json(figures: &[Figure]) -> Value {
    let one = |figure: &Figure| {
        json!({
            "name": figure.name, "figure": figure.value, "unit": figure.unit, "beside": figure.beside,
            "target": figure.target.map(|target| target.text(figure.unit)), "verdict": figure.verdict(),
        })
    };
    json!({"figures": figures.iter().map(one).collect::<Vec<_>>(), "load": load()})
}

/// How busy the machine was, as the kernel says.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The value below which this share of all lies, by nearest rank; no number if there is none.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Ranks are small whole numbers.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The middle one; the mean of both where there are two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_of_it() {
        let figure = Figure::new("POST to exec", 31.25, "ms").beside("floor 1.4 ms").at_most(40.0);
        let line = figure.to_string();
        assert!(line.starts_with("POST to exec "), "{line}");
        assert!(line.ends_with("31.2 ms | floor 1.4 ms | at most 40 ms | met"), "{line}");
        let missed = Figure { value: 40.5, ..figure.clone() };
        assert!(missed.is_missed() && missed.to_string().ends_with("| missed"));
        assert!(Figure { value: f64::NAN, ..figure.clone() }.is_missed());
        let least = Figure { value: 40.0, ..figure }.at_least(40.0);
        assert!(least.to_string().ends_with("| at least 40 ms | met"), "{least}");
        assert!(Figure { value: 39.9, ..least.clone() }.is_missed());
        assert!(Figure { value: f64::NAN, ..least }.is_missed());
        assert!(Figure::new("shown", 1.0, "").to_string().ends_with("1 | - | - | shown"));
    }

    #[test]
    fn medians_and_percentiles() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((percentile(&hundred, 99.0) - 99.0).abs() < 1e-9);
        assert!((percentile(&hundred[..20], 99.0) - 20.0).abs() < 1e-9);
        assert!(median(&[]).is_nan() && percentile(&[], 99.0).is_nan());
    }
}
