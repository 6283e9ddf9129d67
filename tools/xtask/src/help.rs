//! What `--help` prints.

/// A page of help, one for each command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Topic {
    Overview,
    Setup,
    Ebpf,
    Disasm,
    Demo,
    Test,
    Kernels,
    Fuzz,
    Deny,
}

impl Topic {
    /// The page of a command.
    pub(crate) fn of(command: &str) -> Option<Self> {
        Some(match command {
            "setup" => Self::Setup,
            "ebpf" => Self::Ebpf,
            "disasm" => Self::Disasm,
            "demo" => Self::Demo,
            "test" | "ci" => Self::Test,
            "fuzz" => Self::Fuzz,
            "deny" => Self::Deny,
            _ => return None,
        })
    }

    /// The page itself.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Overview => OVERVIEW,
            Self::Setup => SETUP,
            Self::Ebpf => EBPF,
            Self::Disasm => DISASM,
            Self::Demo => DEMO,
            Self::Test => TEST,
            Self::Kernels => KERNELS,
            Self::Fuzz => FUZZ,
            Self::Deny => DENY,
        }
    }
}

const OVERVIEW: &str = "\
Set up, build, demonstrate and test this workspace.

Usage: cargo xtask COMMAND

  demo    set up what is missing, then show the datapath at work in a lab
  test    set up what is missing, then run every test (ci is another name for it)
  setup   install the eBPF toolchain and the tools that the tests call
  ebpf    build the eBPF object and tell its size
  disasm  print the eBPF object's instructions beside their source
  fuzz    send frames that nobody thought of through the packet path
  deny    check licences, sources and duplicates of the dependencies

cargo xtask COMMAND --help tells more.
";

const SETUP: &str = "\
Install what is missing: an eBPF compiler, bpf-linker, and the tools that the tests call.

Usage: cargo xtask setup [--check | --dry-run [--all]]

  --check    only report; exit with 1 if something is missing
  --dry-run  print the commands, run none
  --all      with --dry-run: as on a machine that has nothing yet

Where there is apt, and run as root, it installs the distribution's packages and builds
bpf-linker against their LLVM. Elsewhere it prints the commands to run.
A second run finds nothing to do.

Examples:
  cargo xtask setup
  cargo xtask setup --check
";

const EBPF: &str = "\
Build the eBPF object, as the build script of datapath-user does, and tell where it is,
what built it, its size and the number of instructions of each function.

Usage: cargo xtask ebpf

To embed a ready object instead of building one:
  DATAPATH_OBJECT=/path/to/datapath.o cargo build
";

const DISASM: &str = "\
Build the eBPF object and print its instructions beside their source lines.

Usage: cargo xtask disasm [FUNCTION]

FUNCTION is a name as cargo xtask ebpf lists it, or the end of one.

Examples:
  cargo xtask disasm | less
  cargo xtask disasm from_pod
  cargo xtask disasm nat::reserve
";

const DEMO: &str = "\
Show the datapath at work: nodes and pods as network namespaces on this machine.
Needs root. Whatever is missing is set up first. Leaves nothing behind.

Usage: cargo xtask demo [--keep]

  --keep  leave the lab running afterwards, to look around in

Exits with the code of dpctl lab demo.
";

const TEST: &str = "\
Run the tests, tier by tier. Whatever is missing is set up first.

Usage: cargo xtask test [TIER...] [--allow-skip TIER]

  lint    formatting, clippy, docs, no unfinished code, no warning in the eBPF object
  unit    cargo test of every package but the conformance suite; half a minute of the fuzzer
  lab     the conformance suite: real packets through network namespaces; needs root
  policy  all policy cases, and random policies; needs root (lab: the quick ones)

Without a TIER: the first three. A failed tier does not stop the next one.
A tier that cannot run counts as skipped and fails the run, unless --allow-skip names it.

Not among them: cargo xtask test kernels, on other kernels and network cards.

Examples:
  cargo xtask test
  cargo xtask test lint unit
  cargo xtask test --allow-skip lab
";

const KERNELS: &str = "\
Load every program and run every path on other kernels: those of the distribution, in QEMU
without hardware help, and the one that runs here. Ends with a table of what each gives.

Usage: cargo xtask test kernels [6.1] [6.12] [host] [--nic virtio | --nic e1000e]

  --nic  in the guests, network cards instead of veth pairs between nodes: their drivers do
         checksums and segments as hardware does. virtio needs root to join them.

Without a kernel: all three, or both guests with --nic; about two minutes each. host needs
root. Kernels are downloaded by apt-get into the target directory, once: to get newer ones,
delete its directory kernels. QEMU and what else is missing is set up first. A guest that
hangs is ended after ten minutes. Exits with 1 if a check fails or cannot run.

Example: cargo xtask test kernels 6.12 --nic e1000e
";

const FUZZ: &str = "\
Send frames that nobody thought of through every hook of the packet path, with cargo-fuzz.
cargo-fuzz and a C++ compiler are installed if they are missing; any Rust compiler will do.

Usage: cargo xtask fuzz [--runs N] [--seconds S]

  --runs     end after so many inputs
  --seconds  end after so long; 60 where neither is given

What is found is kept in the target directory, and built on by the next run. An input that
fails is in datapath-kern/fuzz/artifacts/pipeline. In regressions/pipeline it is a test,
which also says in words what its bytes mean:

  cargo test -p datapath-kern --test fuzzed

Example, the long run: cargo xtask fuzz --runs 10000000
";

const DENY: &str = "\
Check the dependencies with cargo-deny: licences, sources, banned and duplicate crates.
The rules are in .cargo/deny.toml.

Usage: cargo xtask deny

It needs cargo-deny: cargo install cargo-deny --locked
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_names_every_command() {
        for command in ["setup", "ebpf", "disasm", "demo", "test", "fuzz", "deny"] {
            let topic = Topic::of(command).unwrap();
            assert!(OVERVIEW.contains(&format!("\n  {command} ")), "{command}");
            assert!(topic.text().contains(&format!("cargo xtask {command}")));
        }
    }

    #[test]
    fn every_page_fits_on_a_terminal() {
        for text in [
            OVERVIEW, SETUP, EBPF, DISASM, DEMO, TEST, KERNELS, FUZZ, DENY,
        ] {
            assert!(text.lines().count() <= 24);
            assert!(text.lines().all(|line| line.len() <= 92), "{text}");
        }
    }
}
