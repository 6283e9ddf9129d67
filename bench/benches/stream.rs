//! The lab bench `stream`: [`datapath_bench::cases::Stream`].

use std::process::ExitCode;

fn main() -> ExitCode {
    datapath_bench::cli::main(&datapath_bench::cases::Stream)
}
