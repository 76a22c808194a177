//! What the programs cost, by the kernel's own clock (`bpf_stats`). Figures, not assertions about a busy
//! machine: run with `cargo test -p ambit-loader --test kernel cost -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use socket2::{Domain, Socket, Type};

use crate::lab::{Namespace, Pod, accept, local};
use crate::leaks::InKernel;
use crate::neighbours::{CLIENT, Neighbours, SERVER, V4};

const CONNECTIONS: u32 = 20_000;

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

/// Opens and closes connections, and says what the programs spent on one of them.
fn measure(name: &str, world: &Neighbours, from: &Namespace, app: &Socket) {
    let before = spent(world);
    from.run(|| {
        for _ in 0..CONNECTIONS {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            client.connect(&local(app).into()).expect("connected");
            drop(accept(app).0);
            client.set_linger(Some(Duration::ZERO)).expect("reset on close");
        }
    });
    world.rest();
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
}

#[test]
#[ignore = "measures"]
fn of_a_connection() {
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
