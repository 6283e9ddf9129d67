//! The lab bench `family`: [`datapath_bench::cases::AddressFamily`].

use std::process::ExitCode;

fn main() -> ExitCode {
    datapath_bench::cli::main(&datapath_bench::cases::AddressFamily)
}
