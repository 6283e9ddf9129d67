//! The lab bench `cpus`: [`datapath_bench::cases::Cpus`].

use std::process::ExitCode;

fn main() -> ExitCode {
    datapath_bench::cli::main(&datapath_bench::cases::Cpus)
}
