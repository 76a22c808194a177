//! Whether a series grows: the slope by Theil and Sen, the median of the slopes of all pairs of points, with
//! the confidence interval that Kendall's test gives. A few wild points change neither.

/// Growth from one point to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// With the upper one, bounds a 95 % confidence interval.
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

/// The slope of points at equal distances. None when there are fewer than eight: an interval of theirs would
/// say nothing.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of points"
)]
pub fn slope(points: &[f64]) -> Option<Slope> {
    let n = points.len();
    if n < 8 {
        return None;
    }
    let mut slopes = Vec::new();
    for (i, first) in points.iter().enumerate() {
        slopes.extend((i + 1..n).map(|j| (points[j] - first) / (j - i) as f64));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    // The standard deviation of Kendall's statistic; 1.96 of them hold 95 %.
    let deviation = (n as f64 * (n as f64 - 1.0) * (2.0 * n as f64 + 5.0) / 18.0).sqrt();
    let width = 1.96 * deviation;
    let pairs = slopes.len() as f64;
    let low = ((pairs - width) / 2.0).floor().max(0.0) as usize;
    let high = f64::midpoint(pairs, width).ceil().min(pairs - 1.0) as usize;
    let median = f64::midpoint(slopes[(slopes.len() - 1) / 2], slopes[slopes.len() / 2]);
    Some(Slope { low: slopes[low], median, high: slopes[high] })
}

#[cfg(test)]
mod tests {
    use super::slope;

    #[test]
    fn slope_distinguishes_growth_from_noise() {
        let noise = |i: i32| f64::from((i * 7919 + 13) % 11 - 5);
        let series = |growth: f64| (0..20).map(|i| f64::from(i) * growth + noise(i)).collect::<Vec<_>>();
        let rows = [("flat", 0.0, false), ("growing", 2.0, true), ("shrinking", -2.0, false)];
        for (name, growth, grows) in rows {
            let found = slope(&series(growth)).expect(name);
            assert!(found.low <= growth && growth <= found.high, "{name}: {found:?}");
            assert!(found.low <= found.median && found.median <= found.high, "{name}: {found:?}");
            assert_eq!(found.low > 0.0, grows, "{name}: {found:?}");
        }
        let mut wild = series(0.0);
        wild[15] = 1e6;
        assert!(slope(&wild).expect("enough").low <= 0.0, "one wild point is no growth");
        assert_eq!(slope(&[1.0; 7]), None);
        let flat = slope(&[1.0; 8]).expect("enough");
        assert!(flat.low.abs() + flat.high.abs() < f64::EPSILON, "{flat:?}");
    }
}
