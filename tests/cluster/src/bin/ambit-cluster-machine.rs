//! Makes machines (`start`), is the first process of each (`init`), and runs programs in them (`enter`): see
//! `ambit_cluster`.

fn main() -> std::process::ExitCode {
    ambit_cluster::node_program(&std::env::args_os().skip(1).collect::<Vec<_>>())
}
