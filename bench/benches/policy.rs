//! The lab bench `policy`: [`datapath_bench::cases::Policy`].

use std::process::ExitCode;

fn main() -> ExitCode {
    datapath_bench::cli::main(&datapath_bench::cases::Policy)
}
