//! `dpctl`: asks a node's datapath agent, and runs labs.

use std::process::ExitCode;

fn main() -> ExitCode {
    datapath_tools::cmd::main()
}
