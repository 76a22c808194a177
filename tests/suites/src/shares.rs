//! Whether what was counted agrees with the shares that were expected: Pearson's chi-square.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// How often each endpoint was chosen, by its name.
pub type Counts = BTreeMap<String, usize>;

/// What chi-square exceeds by chance once in a thousand samples (p = 0.001), by degrees of freedom from 1.
/// From the NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.4, upper-tail critical values.
const CRITICAL: [f64; 6] = [10.828, 13.816, 16.266, 18.467, 20.515, 22.458];

/// A statistic and what it must not exceed.
#[derive(Clone, Copy, Debug)]
pub struct Chi {
    pub statistic: f64,
    pub critical: f64,
}

impl Chi {
    fn new(statistic: f64, degrees: usize) -> Result<Self> {
        let critical = degrees.checked_sub(1).and_then(|index| CRITICAL.get(index));
        let critical =
            *critical.with_context(|| format!("no critical value for {degrees} degrees of freedom"))?;
        Ok(Self { statistic, critical })
    }

    /// Whether the sample is one that chance brings.
    pub fn agrees(self) -> bool {
        self.statistic <= self.critical
    }
}

impl std::fmt::Display for Chi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} (at most {:.2})", self.statistic, self.critical)
    }
}

/// A sample against the weights that its endpoints should have. An endpoint without a weight must not be in
/// it.
pub fn fit(counts: &Counts, weights: &[(&str, u32)]) -> Result<Chi> {
    let strangers: Vec<_> =
        counts.keys().filter(|name| weights.iter().all(|(known, _)| known != name)).collect();
    ensure!(strangers.is_empty(), "unexpected endpoints: {strangers:?}");
    let number: f64 = counts.values().copied().map(float).sum();
    let whole: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let terms = weights.iter().map(|(name, weight)| {
        let expected = number * f64::from(*weight) / whole;
        let found = counts.get(*name).copied().map_or(0.0, float);
        (found - expected).powi(2) / expected
    });
    Chi::new(terms.sum(), weights.len().saturating_sub(1))
}

/// Two samples against each other: whether both come from the same shares, which need not be known.
pub fn homogeneity(one: &Counts, other: &Counts) -> Result<Chi> {
    let total = |counts: &Counts| counts.values().copied().map(float).sum::<f64>();
    let both = total(one) + total(other);
    let mut names: Vec<&String> = one.keys().chain(other.keys()).collect();
    names.sort();
    names.dedup();
    let mut statistic = 0.0;
    for name in &names {
        let of = |counts: &Counts| counts.get(*name).copied().map_or(0.0, float);
        let row = of(one) + of(other);
        for counts in [one, other] {
            let expected = row * total(counts) / both;
            statistic += (of(counts) - expected).powi(2) / expected;
        }
    }
    Chi::new(statistic, names.len().saturating_sub(1))
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
