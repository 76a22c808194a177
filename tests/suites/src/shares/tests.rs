use super::*;

fn counts(of: &[(&str, usize)]) -> Counts {
    of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn chi_squared_matches_hand_calculation() {
    let rows = [
        ("as expected", counts(&[("a", 100), ("b", 300)]), 0.0, true),
        // (110-100)²/100 + (290-300)²/300
        ("near", counts(&[("a", 110), ("b", 290)]), 4.0 / 3.0, true),
        // 40²/100 + 40²/300
        ("far", counts(&[("a", 140), ("b", 260)]), 64.0 / 3.0, false),
        // 100²/100 + 100²/300
        ("one is missing", counts(&[("b", 400)]), 400.0 / 3.0, false),
    ];
    for (name, sample, expected, agrees) in rows {
        let chi = fit(&sample, &[("a", 1), ("b", 3)]).unwrap();
        assert!((chi.statistic - expected).abs() < 1e-9, "{name}: {chi}");
        assert_eq!(chi.agrees(), agrees, "{name}: {chi}");
    }
    assert!(fit(&counts(&[("c", 1)]), &[("a", 1), ("b", 3)]).is_err(), "a stranger");
}

#[test]
fn homogeneity_accepts_samples_with_equal_shares() {
    let one = counts(&[("a", 25), ("b", 75)]);
    let rows = [
        ("alike", counts(&[("a", 50), ("b", 150)]), 0.0, true),
        // Of 300 in all 100 are a: (25-100/3)²·(3/100+3/200) + (75-200/3)²·(3/200+3/400)
        ("nearly alike", counts(&[("a", 75), ("b", 125)]), 4.6875, true),
        // Of 300 in all 150 are a: 25²/50 + 25²/50 + 25²/100 + 25²/100
        ("not alike", counts(&[("a", 125), ("b", 75)]), 37.5, false),
        ("one is missing", counts(&[("b", 100)]), 200.0 / 7.0, false),
    ];
    for (name, other, expected, agrees) in rows {
        let chi = homogeneity(&one, &other).unwrap();
        assert!((chi.statistic - expected).abs() < 1e-9, "{name}: {chi}");
        assert_eq!(chi.agrees(), agrees, "{name}: {chi}");
    }
}
