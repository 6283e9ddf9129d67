//! `cargo xtask ebpf` and `cargo xtask disasm`: the eBPF object, built and looked into.

use std::env::consts::ARCH;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow};

use crate::build::ebpf::{self, Object, Plan, llvm_tool};
use crate::build::process::capture;
use crate::progress::Ticker;
use crate::workspace::Workspace;

/// Builds the object and reports on it.
///
/// # Errors
///
/// If it does not build.
pub(crate) fn build(workspace: &Workspace) -> Result<ExitCode> {
    let target_dir = workspace.target.join("ebpf");
    let embed = target_dir.join("datapath.o");
    let plan = plan(workspace, &target_dir, &embed);
    let object = build_shown(&plan)?;
    print!("{}", object.warnings);

    let linked = plan.linked();
    let linked_bytes = size_bytes(&linked)?;
    let embed_bytes = size_bytes(&embed)?;
    println!("object    {} ({embed_bytes} bytes)", embed.display());
    println!(
        "linked    {} ({linked_bytes} bytes with debug info)",
        linked.display()
    );
    println!("compiler  {}", object.toolchain.compiler);
    println!("linker    {}", object.toolchain.linker);
    println!(
        "sources   {} files, besides registry crates",
        object.sources.len()
    );
    println!("log       {}", plan.log().display());
    if !object.stripped {
        println!("note      no llvm-objcopy: the debug info is embedded too");
    }
    let llvm = object.toolchain.compiler.version.llvm;
    match llvm_tool("llvm-objdump", llvm) {
        Some(objdump) => print!("{}", instruction_table(&objdump, &embed)?),
        None => println!("note      no llvm-objdump: instructions are not counted"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the object and returns what the compiler warned of; empty if it did not.
///
/// # Errors
///
/// If it does not build.
pub(crate) fn warnings(workspace: &Workspace) -> Result<String> {
    let target_dir = workspace.target.join("ebpf");
    let embed = target_dir.join("datapath.o");
    let object = build_shown(&plan(workspace, &target_dir, &embed))?;
    Ok(object.warnings)
}

/// Builds the object and prints its instructions: all, or those of one function.
///
/// # Errors
///
/// If it does not build, there is no `llvm-objdump`, or no such function.
pub(crate) fn disassemble(workspace: &Workspace, function: Option<&str>) -> Result<ExitCode> {
    let target_dir = workspace.target.join("ebpf");
    let embed = target_dir.join("datapath.o");
    let plan = plan(workspace, &target_dir, &embed);
    let object = build_shown(&plan)?;
    let objdump = llvm_tool("llvm-objdump", object.toolchain.compiler.version.llvm)
        .context("there is no llvm-objdump: install your distribution's package llvm")?;
    let linked = plan.linked();
    if let Some(function) = function {
        let text = objdump_text(&objdump, &linked)?;
        let names = functions(&text);
        if !names.iter().any(|counted| counted.name == function) {
            let names: Vec<&str> = names.iter().map(|counted| counted.name).collect();
            return Err(anyhow!(
                "the object has no function {function:?}; it has: {}",
                names.join(", ")
            ));
        }
    }
    let mut command = Command::new(objdump);
    command
        .args(["--disassemble", "--source", "--reloc", "--no-show-raw-insn"])
        .current_dir(&workspace.root);
    if let Some(function) = function {
        command.arg(format!("--disassemble-symbols={function}"));
    }
    let status = command.arg(linked).status().context("start llvm-objdump")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn plan<'a>(workspace: &'a Workspace, target_dir: &'a Path, embed: &'a Path) -> Plan<'a> {
    Plan {
        workspace: &workspace.root,
        target_dir,
        arch: ARCH,
        embed,
    }
}

fn build_shown(plan: &Plan<'_>) -> Result<Object> {
    let mut ticker = Ticker::start();
    let built = ebpf::build(plan, &mut |line| ticker.tick(line));
    ticker.finish();
    built.map_err(|err| anyhow!("{err}"))
}

fn size_bytes(path: &Path) -> Result<u64> {
    let meta = path.metadata();
    Ok(meta
        .with_context(|| format!("read {}", path.display()))?
        .len())
}

fn objdump_text(objdump: &Path, object: &Path) -> Result<String> {
    capture(Command::new(objdump).arg("--disassemble").arg(object))
        .map_err(|said| anyhow!("{}: {said}", objdump.display()))
}

fn instruction_table(objdump: &Path, object: &Path) -> Result<String> {
    let text = objdump_text(objdump, object)?;
    let functions = functions(&text);
    let total: usize = functions.iter().map(|function| function.instructions).sum();
    let rows = functions.iter().map(|function| {
        let Function {
            section,
            name,
            instructions,
        } = function;
        format!("{instructions:>12}  {name} ({section})")
    });
    let lines: Vec<String> = std::iter::once(format!("\n{:>12}  function", "instructions"))
        .chain(rows)
        .chain([format!("{total:>12}  in all\n")])
        .collect();
    Ok(lines.join("\n"))
}

/// A function of the object.
#[derive(Debug, PartialEq)]
struct Function<'a> {
    section: &'a str,
    name: &'a str,
    /// As the kernel counts them: a 64-bit load is two.
    instructions: usize,
}

/// Reads the output of `llvm-objdump --disassemble`.
fn functions(text: &str) -> Vec<Function<'_>> {
    let mut functions: Vec<Function<'_>> = Vec::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Disassembly of section ") {
            section = name.trim_end_matches(':');
        } else if let Some((_, rest)) = line.split_once(" <")
            && let Some(name) = rest.strip_suffix(">:")
            && !line.starts_with(' ')
        {
            functions.push(Function {
                section,
                name,
                instructions: 0,
            });
        } else if let Some(function) = functions.last_mut() {
            function.instructions += instruction_bytes(line) / 8;
        }
    }
    functions
}

/// Bytes of machine code in a line such as `  3:\t18 01 00 00 … 00\tr1 = 0x0 ll`.
fn instruction_bytes(line: &str) -> usize {
    let mut columns = line.split('\t');
    let is_address = columns
        .next()
        .and_then(|address| address.trim().strip_suffix(':'))
        .is_some_and(|address| address.chars().all(|c| c.is_ascii_hexdigit()));
    match columns.next() {
        Some(bytes) if is_address => bytes.split_whitespace().count(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "
/t/datapath.o:\tfile format elf64-bpf

Disassembly of section .text:

0000000000000000 <memcpy>:
       0:\t15 03 09 00 00 00 00 00\tif r3 == 0x0 goto +0x9 <memcpy+0x50>
       1:\t95 00 00 00 00 00 00 00\texit

Disassembly of section classifier:

0000000000000000 <from_pod>:
       0:\t18 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00\tr1 = 0x0 ll
       2:\t95 00 00 00 00 00 00 00\texit
";

    #[test]
    fn instructions_are_counted_as_the_kernel_does() {
        let expected = [
            Function {
                section: ".text",
                name: "memcpy",
                instructions: 2,
            },
            Function {
                section: "classifier",
                name: "from_pod",
                instructions: 3,
            },
        ];
        assert_eq!(functions(DUMP), expected);
    }

    #[test]
    fn an_empty_dump_has_no_functions() {
        assert!(functions("").is_empty());
    }
}
