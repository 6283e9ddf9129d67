//! The lab bench `masquerade`: [`datapath_bench::cases::Masquerade`].

use std::process::ExitCode;

fn main() -> ExitCode {
    datapath_bench::cli::main(&datapath_bench::cases::Masquerade)
}
