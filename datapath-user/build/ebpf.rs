//! Compiles `datapath-kern`'s binary to a BPF object and makes it small enough to embed.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::elf::{self, NotBpf};
use super::toolchain::{Missing, TARGET, Toolchain};
use super::{diagnose, process};

const PACKAGE: &str = "datapath-kern";
const BINARY: &str = "datapath";
/// The workspace profile for the object: one codegen unit, LTO, no unwinding, debug info for BTF.
const PROFILE: &str = "bpf";
const LOG: &str = "build.log";

/// What to build, and where.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Root of the workspace that holds `datapath-kern`.
    pub(crate) workspace: &'a Path,
    /// Target directory of the object's own build. Debug, release and clippy builds of user
    /// space share it, so that the object is compiled once.
    pub(crate) target_dir: PathBuf,
    /// Architecture of the kernel that will run it, in Rust's spelling.
    pub(crate) arch: &'a str,
    /// Where the object to embed is written.
    pub(crate) embed: PathBuf,
}

impl Plan<'_> {
    /// The object as linked, with DWARF: for a disassembler.
    pub(crate) fn linked(&self) -> PathBuf {
        self.target_dir.join(TARGET).join(PROFILE).join(BINARY)
    }

    /// Which tools built it, by what command, and all they said.
    pub(crate) fn log(&self) -> PathBuf {
        self.target_dir.join(LOG)
    }
}

/// A built object.
#[derive(Debug)]
pub(crate) struct Object {
    /// What built it.
    pub(crate) toolchain: Toolchain,
    /// Every source file that went into it, registry crates excepted.
    pub(crate) sources: Vec<PathBuf>,
    /// Whether DWARF could be removed from the object to embed.
    pub(crate) stripped: bool,
    /// Compiler warnings about our own crates.
    pub(crate) warnings: String,
}

/// Why there is no object.
#[derive(Debug)]
pub(crate) enum BuildError {
    /// The tools are not there.
    Toolchain(Missing),
    /// A file operation failed.
    File {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A program could not be started, or a helper failed.
    Run { program: String, said: String },
    /// The compiler or the linker failed.
    Failed {
        excerpt: String,
        explanation: Option<&'static str>,
        log: PathBuf,
    },
    /// The build left something that is no BPF object.
    NotBpf(NotBpf),
}

/// Builds the object. `progress` gets each line that cargo says, as it says it.
///
/// # Errors
///
/// If a tool is missing, the build fails, or its result is no BPF object.
pub(crate) fn build(plan: &Plan<'_>, progress: &mut dyn FnMut(&str)) -> Result<Object, BuildError> {
    let toolchain = Toolchain::find().map_err(BuildError::Toolchain)?;
    fs::create_dir_all(&plan.target_dir).map_err(file("create", &plan.target_dir))?;
    let log = plan.log();
    forget_object_of_other_linker(plan, &toolchain, &log)?;

    let mut command = cargo_command(plan, &toolchain);
    let (success, stderr) = run(&mut command, progress)?;
    let head = log_head(&toolchain, &command);
    fs::write(&log, format!("{head}\n{stderr}")).map_err(file("write", &log))?;
    if !success {
        return Err(BuildError::Failed {
            excerpt: diagnose::excerpt(&stderr),
            explanation: diagnose::explain(&stderr),
            log,
        });
    }

    let linked = plan.linked();
    let stripped = strip(&linked, &plan.embed, toolchain.compiler.version.llvm)?;
    elf::check(&plan.embed).map_err(BuildError::NotBpf)?;
    let sources = sources(&linked.with_extension("d"))?;
    Ok(Object {
        toolchain,
        sources,
        stripped,
        warnings: diagnose::warnings(&stderr),
    })
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toolchain(missing) => {
                write!(
                    f,
                    "{missing}\n  To install what is missing: cargo xtask setup"
                )
            }
            Self::File {
                doing,
                path,
                source,
            } => write!(f, "{doing} {}: {source}", path.display()),
            Self::Run { program, said } => write!(f, "{program}: {said}"),
            Self::Failed {
                excerpt,
                explanation,
                log,
            } => {
                writeln!(f, "the eBPF object does not build")?;
                for line in excerpt.lines() {
                    writeln!(f, "  {line}")?;
                }
                if let Some(explanation) = explanation {
                    writeln!(f, "  That is: {explanation}")?;
                }
                write!(f, "  Whole log: {}", log.display())
            }
            Self::NotBpf(not_bpf) => write!(f, "the build left no BPF object: {not_bpf}"),
        }
    }
}

/// Finds a tool of LLVM, such as `llvm-objdump`: of release `llvm` if there, else the newest.
pub(crate) fn llvm_tool(name: &str, llvm: u32) -> Option<PathBuf> {
    let mut releases: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let dir = entry.file_name();
            let release = dir.to_str()?.strip_prefix("llvm-")?.parse().ok()?;
            let tool = entry.path().join("bin").join(name);
            tool.is_file().then_some((release, tool))
        })
        .collect();
    releases.sort_by_key(|&(release, _)| (release == llvm, release));
    let newest = releases.pop().map(|(_, tool)| tool);
    newest.or_else(|| {
        let path = std::env::var_os("PATH")?;
        process::find_all(name, &path).into_iter().next()
    })
}

fn cargo_command(plan: &Plan<'_>, toolchain: &Toolchain) -> Command {
    let mut command = toolchain.compiler.cargo_build();
    let flags = [
        "-Clink-arg=--btf".to_owned(),
        // Has LLVM write small copies and fills as loads and stores rather than as calls, whose
        // pointers into the caller's stack the verifier will not have returned.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        // 32-bit ALU and jumps, in every kernel since 5.1: shorter programs.
        "-Ctarget-cpu=v3".to_owned(),
        format!("--cfg=bpf_target_arch=\"{}\"", plan.arch),
    ];
    command
        .current_dir(plan.workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("PATH", path_with(&toolchain.linker.path))
        .args(["--color", "never", "--profile", PROFILE, "--target", TARGET])
        .args(["--package", PACKAGE, "--bin", BINARY])
        .arg("--target-dir")
        .arg(&plan.target_dir);
    command
}

/// `PATH` with the chosen linker's directory in front: rustc finds it by name.
fn path_with(linker: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let front = linker.parent().map(Path::to_path_buf);
    let dirs = front.into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).unwrap_or(path)
}

/// Cargo does not know about the linker, so it would call an object fresh that another
/// linker made.
fn forget_object_of_other_linker(
    plan: &Plan<'_>,
    toolchain: &Toolchain,
    log: &Path,
) -> Result<(), BuildError> {
    let line = linker_line(toolchain);
    let Ok(previous) = fs::read_to_string(log) else {
        return Ok(());
    };
    if previous.lines().any(|logged| logged == line) {
        return Ok(());
    }
    let dir = plan.target_dir.join(TARGET).join(PROFILE);
    match fs::remove_dir_all(&dir) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(file("remove", &dir)(err)),
        _ => Ok(()),
    }
}

fn run(
    command: &mut Command,
    progress: &mut dyn FnMut(&str),
) -> Result<(bool, String), BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |err: std::io::Error| BuildError::Run {
        program: program.clone(),
        said: err.to_string(),
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(failed)? > 0 {
            let text = String::from_utf8_lossy(&line);
            progress(text.trim_end());
            said.push_str(&text);
            line.clear();
        }
    }
    Ok((child.wait().map_err(failed)?.success(), said))
}

fn linker_line(toolchain: &Toolchain) -> String {
    format!("linker: {}", toolchain.linker)
}

fn log_head(toolchain: &Toolchain, command: &Command) -> String {
    format!(
        "compiler: {}\n{}\n{}\nlinker path: {}\ncommand: {}\n",
        toolchain.compiler,
        toolchain.compiler.version.verbose,
        linker_line(toolchain),
        toolchain.linker.path.display(),
        shell(command),
    )
}

/// `command` as one would type it, without the variables it removes.
fn shell(command: &Command) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let set = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        Some(match name.to_string_lossy().as_ref() {
            "CARGO_ENCODED_RUSTFLAGS" => {
                format!("RUSTFLAGS={}", quote(&value.replace('\x1f', " ")))
            }
            name => format!("{name}={}", quote(&value)),
        })
    });
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()));
    let line: Vec<String> = set.chain(words).collect();
    line.join(" ")
}

/// Copies `linked` to `embed` without DWARF; `.BTF` and `.BTF.ext` stay. Tells whether DWARF
/// could be removed: without LLVM's tools it goes along, which only costs size.
fn strip(linked: &Path, embed: &Path, llvm: u32) -> Result<bool, BuildError> {
    if let Some(objcopy) = llvm_tool("llvm-objcopy", llvm) {
        let mut command = Command::new(&objcopy);
        command.arg("--strip-debug").arg(linked).arg(embed);
        process::capture(&mut command).map_err(|said| BuildError::Run {
            program: objcopy.display().to_string(),
            said,
        })?;
        return Ok(true);
    }
    fs::copy(linked, embed).map_err(file("copy the object to", embed))?;
    Ok(false)
}

/// The files that cargo's dependency file lists: `object: source source ...`.
fn sources(dep_info: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let text = fs::read_to_string(dep_info).map_err(file("read", dep_info))?;
    Ok(parse_dep_info(&text))
}

fn parse_dep_info(text: &str) -> Vec<PathBuf> {
    let Some((_, list)) = text.lines().next().and_then(|line| line.split_once(": ")) else {
        return Vec::new();
    };
    // A space inside a name is written as `\ `.
    list.replace("\\ ", "\0")
        .split_whitespace()
        .map(|name| PathBuf::from(name.replace('\0', " ")))
        .collect()
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::File {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_with_their_spaces() {
        let text = "/t/bpf/datapath: /a/kern/src/main.rs /a\\ b/tunnel/src/lib.rs\n";
        let sources = parse_dep_info(text);
        assert_eq!(
            sources,
            [
                PathBuf::from("/a/kern/src/main.rs"),
                PathBuf::from("/a b/tunnel/src/lib.rs")
            ]
        );
        assert!(parse_dep_info("").is_empty());
    }

    #[test]
    fn a_logged_command_can_be_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command
            .env_remove("RUSTUP_TOOLCHAIN")
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ca\x1f--cfg=b=\"c\"")
            .args(["build", "it's"]);
        assert_eq!(
            shell(&command),
            r#"RUSTFLAGS='-Ca --cfg=b="c"' '/usr/bin/cargo' 'build' 'it'\''s'"#
        );
    }

    #[test]
    fn an_unknown_llvm_tool_is_none() {
        assert_eq!(llvm_tool("llvm-no-such-tool", 22), None);
    }

    #[test]
    fn a_missing_tool_comes_with_its_remedy() {
        let missing = [
            Missing::Compiler {
                system: "not installed".to_owned(),
                nightly: "rustup is not installed".to_owned(),
            },
            Missing::Linker,
            Missing::BrokenLinker {
                path: PathBuf::from("/bin/bpf-linker"),
                said: "libLLVM.so.22.1: cannot open shared object file".to_owned(),
            },
            Missing::OldLinker {
                path: PathBuf::from("/bin/bpf-linker"),
                llvm: 21,
                rustc_llvm: 22,
            },
        ];
        for error in missing.map(BuildError::Toolchain) {
            let text = error.to_string();
            assert!(text.ends_with("cargo xtask setup"), "{text}");
            assert!(text.lines().count() <= 4, "{text}");
        }
    }

    #[test]
    fn a_failure_fits_on_a_screen() {
        let error = BuildError::Failed {
            excerpt: diagnose::excerpt(&"error: x\n".repeat(500)),
            explanation: Some("y"),
            log: PathBuf::from("/t/build.log"),
        };
        let text = error.to_string();
        assert!(text.lines().count() < 40, "{text}");
        assert!(text.contains("That is: y"));
        assert!(text.ends_with("/t/build.log"));
    }
}
