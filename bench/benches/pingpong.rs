//! The lab bench `pingpong`: [`datapath_bench::cases::PingPong`].

use std::process::ExitCode;

fn main() -> ExitCode {
    datapath_bench::cli::main(&datapath_bench::cases::PingPong)
}
