//! Looks at what is installed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use crate::build::process::{capture, find_all};
use crate::build::toolchain::{Compiler, Linker, Missing};

/// A program that tests or the lab call.
#[derive(Debug)]
pub(crate) struct Tool {
    /// Its name, or where it is if that is not on the search path.
    pub(crate) program: &'static str,
    /// Debian's package.
    pub(crate) package: &'static str,
    pub(crate) why: &'static str,
}

/// What tests and the lab call.
pub(crate) const TOOLS: &[Tool] = &[
    Tool {
        program: "bpftool",
        package: "bpftool",
        why: "shows loaded programs and maps",
    },
    Tool {
        program: "tshark",
        package: "tshark",
        why: "dissects our packets independently of us",
    },
    Tool {
        program: "tcpdump",
        package: "tcpdump",
        why: "captures in the lab",
    },
    Tool {
        program: "ethtool",
        package: "ethtool",
        why: "switches offloads in the lab",
    },
    Tool {
        program: "ip",
        package: "iproute2",
        why: "shows links and routes of the lab",
    },
    Tool {
        program: "ping",
        package: "iputils-ping",
        why: "tests reachability and MTU",
    },
    Tool {
        program: "nft",
        package: "nftables",
        why: "is the packet filter to coexist and compare with",
    },
    Tool {
        program: "iptables",
        package: "iptables",
        why: "is what the CNI plugin portmap calls",
    },
    Tool {
        program: "/usr/lib/cni/portmap",
        package: "containernetworking-plugins",
        why: "is the CNI plugin whose host ports must work",
    },
];

/// What guests on other kernels take beside.
pub(crate) const EMULATOR: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "runs other kernels",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
        why: "is the first program of a guest",
    },
    Tool {
        program: "modprobe",
        package: "kmod",
        why: "knows which modules a guest needs",
    },
    Tool {
        program: "cpio",
        package: "cpio",
        why: "packs the first files of a guest",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
        why: "unpacks modules",
    },
];

/// What the fuzzer takes beside: a subcommand of cargo, which is no package, and what it builds
/// libFuzzer with.
pub(crate) const FUZZER: Tool = Tool {
    program: "cargo-fuzz",
    package: "",
    why: "sends frames that nobody thought of through the packet path",
};

/// See [`FUZZER`].
pub(crate) const FUZZER_COMPILER: Tool = Tool {
    program: "c++",
    package: "g++",
    why: "compiles libFuzzer",
};

impl Tool {
    /// Where it is, if it is.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        find_all(self.program, &search_path()).into_iter().next()
    }
}

/// rustup's components that the tier `lint` needs, with the subcommand that each provides.
const COMPONENTS: &[(&str, &str)] = &[("rustfmt", "fmt"), ("clippy", "clippy")];

/// What is there and what is not.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) compiler: Result<Compiler, Missing>,
    /// Judged against the compiler's LLVM; without a compiler, unknown.
    pub(crate) linker: Option<Result<Linker, Missing>>,
    tools: Vec<(&'static Tool, Option<PathBuf>)>,
    components: Vec<(&'static str, bool)>,
}

impl Survey {
    /// Looks at this machine.
    pub(crate) fn take() -> Self {
        let compiler = Compiler::find();
        let linker = compiler
            .as_ref()
            .ok()
            .map(|compiler| Linker::find(compiler.version.llvm));
        let tools = TOOLS.iter().map(|tool| (tool, tool.find())).collect();
        let components = COMPONENTS
            .iter()
            .map(|&(name, subcommand)| {
                let mut version = Command::new("cargo");
                (
                    name,
                    capture(version.args([subcommand, "--version"])).is_ok(),
                )
            })
            .collect();
        Self {
            compiler,
            linker,
            tools,
            components,
        }
    }

    /// A machine with nothing on it.
    pub(crate) fn of_nothing() -> Self {
        Self {
            compiler: Err(Missing::Compiler {
                system: "not installed".to_owned(),
                nightly: "not installed".to_owned(),
            }),
            linker: None,
            tools: TOOLS.iter().map(|tool| (tool, None)).collect(),
            components: Vec::new(),
        }
    }

    /// Whether everything that `setup` can install is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.compiler.is_ok()
            && matches!(self.linker, Some(Ok(_)))
            && self.tools.iter().all(|(_, found)| found.is_some())
    }

    /// The tools that are not there.
    pub(crate) fn missing_tools(&self) -> impl Iterator<Item = &'static Tool> {
        self.tools
            .iter()
            .filter(|(_, found)| found.is_none())
            .map(|&(tool, _)| tool)
    }

    /// The names of what is not there.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let compiler = self.compiler.is_err().then_some("eBPF compiler");
        let linker = (!matches!(self.linker, Some(Ok(_)))).then_some("bpf-linker");
        let tools = self.missing_tools().map(|tool| tool.program);
        compiler.into_iter().chain(linker).chain(tools).collect()
    }

    /// The components of the Rust toolchain that are not there.
    pub(crate) fn components_missing(&self) -> Vec<&'static str> {
        let missing = self.components.iter().filter(|(_, there)| !there);
        missing.map(|&(name, _)| name).collect()
    }

    /// What is there, in one line.
    pub(crate) fn summary(&self) -> String {
        let mut parts = Vec::new();
        if let Ok(compiler) = &self.compiler {
            parts.push(compiler.to_string());
        }
        if let Some(Ok(linker)) = &self.linker {
            parts.push(linker.to_string());
        }
        let tools = self.tools.len() - self.missing_tools().count();
        parts.push(format!("{tools} of {} tools", self.tools.len()));
        parts.join(", ")
    }

    /// A line for each thing looked at.
    pub(crate) fn table(&self) -> String {
        let mut rows = vec![row("eBPF compiler", self.compiler.as_ref())];
        rows.push(match &self.linker {
            Some(linker) => row("bpf-linker", linker.as_ref()),
            None => line("bpf-linker", false, "cannot be judged without a compiler"),
        });
        for (tool, found) in &self.tools {
            let detail = match found {
                Some(path) => path.display().to_string(),
                None => format!("package {}; it {}", tool.package, tool.why),
            };
            rows.push(line(tool.program, found.is_some(), &detail));
        }
        for tool in [&FUZZER_COMPILER, &FUZZER] {
            let found = tool.find();
            let detail = found.as_ref().map_or_else(
                || format!("it {}", tool.why),
                |path| path.display().to_string(),
            );
            rows.push(line(tool.program, found.is_some(), &detail));
        }
        for &(name, there) in &self.components {
            let detail = if there { "" } else { "for the tier lint" };
            rows.push(line(name, there, detail));
        }
        rows.concat()
    }
}

fn row<T: ToString, E: ToString>(what: &str, found: Result<T, E>) -> String {
    match found {
        Ok(found) => line(what, true, &found.to_string()),
        Err(missing) => line(what, false, &missing.to_string()),
    }
}

/// One row; further lines of `detail` are aligned under its first.
fn line(what: &str, there: bool, detail: &str) -> String {
    let state = if there { "ok" } else { "missing" };
    let detail = detail.replace('\n', &format!("\n{:24}", ""));
    format!("{what:14} {state:8} {detail}")
        .trim_end()
        .to_owned()
        + "\n"
}

/// `PATH` and the system directories, which a user's `PATH` often lacks.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_all_missing() {
        let survey = Survey::of_nothing();
        assert!(!survey.is_complete());
        assert_eq!(survey.missing().len(), TOOLS.len() + 2);
        let table = survey.table();
        assert_eq!(
            table.matches(" missing ").count(),
            TOOLS.len() + 2,
            "{table}"
        );
    }
}
