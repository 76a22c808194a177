use super::*;

fn figure(metric: &'static str, value: f64) -> Figure {
    Figure { metric, unit: "1/s", better: Better::Higher, value }
}

fn report(figures: &[(System, u32, &'static str, f64)]) -> Report {
    let mut report = Report::new(3, false);
    for (system, round, metric, value) in figures {
        report.add(*system, *round, figure(metric, *value));
    }
    report
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn spread_is_computed() {
    let rows = [
        ("one value is all three", &[2.0][..], [2.0, 2.0, 2.0]),
        ("the median of three, unsorted", &[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]),
        ("the middle of two", &[3.0, 1.0], [1.0, 2.0, 3.0]),
    ];
    for (name, values, [min, median, max]) in rows {
        assert_eq!(spread(values.iter().copied()), Spread { min, median, max }, "{name}");
    }
}

#[test]
fn ratios_are_of_one_round_and_of_their_kind() {
    let metric = loads::REQUESTS;
    let report = report(&[
        (System::Plain, 1, metric, 100.0),
        (System::Tunnel, 1, metric, 50.0),
        (System::Plain, 2, metric, 10.0),
        (System::Tunnel, 2, metric, 6.0),
        (System::Tunnel, 3, metric, 1.0),
        (System::PlainLocal, 1, metric, 200.0),
        (System::Direct, 1, metric, 190.0),
        (System::Envoy, 4, metric, 7.0),
    ]);
    let ratio = |system| report.ratio(report.find(system, metric).expect("it is there"));
    let tunnel = ratio(System::Tunnel).expect("two rounds have both");
    assert!(close(tunnel.min, 0.5) && close(tunnel.median, 0.55) && close(tunnel.max, 0.6), "{tunnel:?}");
    assert!(close(ratio(System::Direct).expect("one round has both").median, 0.95));
    assert_eq!(ratio(System::Envoy), None, "no round has both");
}

#[test]
fn unexpected_samples_are_not_reported() {
    let mut report =
        report(&[(System::PlainLocal, 1, loads::REQUESTS, 1.0), (System::Direct, 1, loads::REQUESTS, 1.0)]);
    report.absent(System::Direct, "it was a tunnel");
    assert!(
        report.is_absent(System::Direct) && report.in_order().all(|series| series.system != System::Direct)
    );
    let verdicts = report.verdicts();
    assert!(
        verdicts.iter().filter(|v| v.system == "direct").all(|v| v.measured.is_none() && v.reached.is_none())
    );
}

#[test]
fn ratio_below_floor_fails() {
    let metric = loads::THROUGHPUT;
    let rows = [
        ("between floor and aim", 0.55, Some(true), Some(false)),
        ("the floor itself", 0.5, Some(true), Some(false)),
        ("below", 0.49, Some(false), Some(false)),
        ("the aim", 0.65, Some(true), Some(true)),
    ];
    for (name, value, reached, aim) in rows {
        let report = report(&[(System::Plain, 1, metric, 1.0), (System::Tunnel, 1, metric, value)]);
        let verdicts = report.verdicts();
        let verdict =
            verdicts.iter().find(|v| v.metric == metric && v.of == "ratio").expect("it is expected");
        assert_eq!((verdict.reached, verdict.aim_reached), (reached, aim), "{name}");
    }
    let report = report(&[(System::Envoy, 1, metric, 2.0), (System::Tunnel, 1, metric, 3.0)]);
    let verdicts = report.verdicts();
    let beside =
        verdicts.iter().find(|v| v.metric == metric && v.of == "× Envoy pair").expect("it is expected");
    assert_eq!((beside.measured, beside.reached), (Some(1.5), Some(true)));
}

#[test]
fn noise_is_marked() {
    let metric = loads::REQUESTS;
    let steady = [
        (System::Plain, 1, metric, 100.0),
        (System::Plain, 2, metric, 110.0),
        (System::Plain, 3, metric, 105.0),
    ];
    assert!(report(&steady).noise().is_empty());
    let unsteady = [
        (System::Plain, 1, metric, 100.0),
        (System::Plain, 2, metric, 140.0),
        (System::Plain, 3, metric, 105.0),
    ];
    assert_eq!(report(&unsteady).noise().len(), 1);
    let tunnel = unsteady.map(|(_, round, metric, value)| (System::Tunnel, round, metric, value));
    assert!(report(&tunnel).noise().is_empty(), "only plain says something about the machine");
    let mut crowded = report(&steady);
    crowded.used = Used { others: 1.0, available: 10.0, ..Used::default() };
    assert_eq!(crowded.noise().len(), 1);
}
