//! The cost of the programs, by the kernel's own clock (`bpf_stats`). It prints figures and asserts nothing:
//! run with `cargo test -p ambit-loader --test kernel cost -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use socket2::{Domain, Socket, Type};

use crate::lab::{Namespace, Pod, accept, local};
use crate::leaks::InKernel;
use crate::neighbours::{CLIENT, Neighbours, SERVER, V4};

const CONNECTIONS: u32 = 20_000;
const ROUND_TRIPS: u32 = 20_000;
const ROUNDS: usize = 5;

/// Time and calls of each of the instance's programs.
fn spent(world: &Neighbours) -> BTreeMap<String, (Duration, u64)> {
    let ours = InKernel::of(world.settings()).programs;
    let mut spent = BTreeMap::new();
    for program in loaded_programs().flatten().filter(|program| ours.contains(&program.id())) {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let entry: &mut (Duration, u64) = spent.entry(name).or_default();
        entry.0 += program.run_time();
        entry.1 += program.run_count();
    }
    spent
}

/// Opens and closes connections, prints the time of each program for one of them, and returns the sum in
/// nanoseconds.
fn measure(name: &str, world: &Neighbours, from: &Namespace, app: &Socket) -> f64 {
    let before = spent(world);
    from.run(|| {
        for _ in 0..CONNECTIONS {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            client.connect(&local(app).into()).expect("connected");
            drop(accept(app).0);
            client.set_linger(Some(Duration::ZERO)).expect("reset on close");
        }
    });
    world.remaining_records();
    let mut sum = 0.0;
    for (program, (time, calls)) in spent(world) {
        let (time_before, calls_before) = before.get(&program).copied().unwrap_or_default();
        let calls = calls - calls_before;
        if calls > 0 {
            let time = time.saturating_sub(time_before).as_secs_f64() * 1e9 / f64::from(CONNECTIONS);
            sum += time;
            println!(
                "{name}: {program}: {time:.0} ns a connection in {:.1} calls",
                f64::from(u32::try_from(calls).expect("not so many")) / f64::from(CONNECTIONS)
            );
        }
    }
    println!("{name}: {sum:.0} ns a connection in all");
    sum
}

/// The time of one round trip of a byte on an open connection, in nanoseconds.
fn round_trip(from: &Namespace, app: &Socket) -> f64 {
    let mut client = from.connect(local(app)).expect("connected");
    let mut server = accept(app).0;
    client.set_tcp_nodelay(true).expect("no delay");
    server.set_tcp_nodelay(true).expect("no delay");
    let mut byte = [0];
    let start = Instant::now();
    for _ in 0..ROUND_TRIPS {
        client.write_all(b"x").expect("writing");
        server.read_exact(&mut byte).expect("reading");
        server.write_all(b"y").expect("writing");
        client.read_exact(&mut byte).expect("reading");
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUND_TRIPS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "measures"]
fn cost_of_logging() {
    let _stats = enable_stats(Stats::RunTime).expect("statistics of programs");
    let worlds = [Neighbours::new(), Neighbours::with_object(Some(crate::log::object()))];
    let apps = [0, 1].map(|index: usize| {
        let app = worlds[index].pods[SERVER].listen(V4[SERVER]);
        worlds[index].allow(CLIENT, SERVER, local(&app));
        app
    });
    let (mut connections, mut round_trips) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (index, name) in ["without logging", "with logging"].into_iter().enumerate() {
            let client = &worlds[index].pods[CLIENT];
            connections[index].push(measure(name, &worlds[index], client, &apps[index]));
            round_trips[index].push(round_trip(client, &apps[index]));
        }
    }
    for (what, [without, with]) in [("a connection", connections), ("a round trip", round_trips)] {
        let (without, with) = (median(without), median(with));
        println!("{what}: {without:.0} ns without, {with:.0} ns with logging: {:.2} times", with / without);
    }
}

#[test]
#[ignore = "measures"]
fn cost_of_a_connection() {
    let _stats = enable_stats(Stats::RunTime).expect("statistics of programs");
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen(V4[SERVER]);
    world.allow(CLIENT, SERVER, local(&app));
    measure("direct", &world, &world.pods[CLIENT], &app);
    let stranger = Pod::new();
    let outside = stranger.outside.listen(crate::lab::NODE_V4);
    measure("outside the mesh", &world, &stranger, &outside);
    let enrolled = world.node.listen(crate::neighbours::NODE);
    measure("enrolled, to a destination outside the mesh", &world, &world.pods[CLIENT], &enrolled);
}
