//! `cargo xtask ebpf` and `cargo xtask disasm`: the eBPF object, built and looked into.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow};

use crate::build::ebpf::{self, Object, Plan, llvm_tool};
use crate::dump;
use crate::progress::Ticker;
use crate::stack::{self, Chain};
use crate::workspace::Workspace;

/// Builds the object and reports on it.
///
/// # Errors
///
/// If it does not build.
pub(crate) fn build(workspace: &Workspace) -> Result<ExitCode> {
    let plan = plan(workspace);
    let object = build_shown(&plan)?;
    print!("{}", object.warnings);

    let linked = plan.linked();
    let linked_bytes = size_bytes(&linked)?;
    let embed_bytes = size_bytes(&plan.embed)?;
    println!("object    {} ({embed_bytes} bytes)", plan.embed.display());
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
        Some(objdump) => {
            let deepest = deepest(&stack::chains(&objdump, &plan.embed)?)?;
            println!(
                "stack     {deepest} of {} bytes at most, as kernels before 6.8 count",
                stack::LIMIT
            );
            print!(
                "\n{}",
                dump::table(&dump::functions(&objdump, &plan.embed)?)
            );
        }
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
    Ok(build_shown(&plan(workspace))?.warnings)
}

/// Builds the object and returns what of it kernels before 6.8 would refuse for its stack; empty if
/// nothing.
///
/// # Errors
///
/// If it does not build, or there is no `llvm-objdump`.
pub(crate) fn too_deep(workspace: &Workspace) -> Result<String> {
    let plan = plan(workspace);
    let object = build_shown(&plan)?;
    let objdump = objdump(&object)?;
    let chains = stack::chains(&objdump, &plan.embed)?;
    println!("   {} of {} bytes at most", deepest(&chains)?, stack::LIMIT);
    let too_deep = chains.iter().filter(|chain| chain.bytes > stack::LIMIT);
    Ok(too_deep.map(ToString::to_string).collect())
}

/// Builds the object and prints its instructions: all, or those of one function.
///
/// # Errors
///
/// If it does not build, there is no `llvm-objdump`, or no such function.
pub(crate) fn disassemble(workspace: &Workspace, function: Option<&str>) -> Result<ExitCode> {
    let plan = plan(workspace);
    let object = build_shown(&plan)?;
    let objdump = objdump(&object)?;
    let linked = plan.linked();
    let mut command = Command::new(&objdump);
    command
        .args([
            "--disassemble",
            "--source",
            "--reloc",
            "--demangle",
            "--no-show-raw-insn",
        ])
        // Sources of the core library are seldom installed: no warning for each of them.
        .stderr(Stdio::null())
        .current_dir(&workspace.root);
    if let Some(wanted) = function {
        let symbols = dump::symbols(&dump::functions(&objdump, &linked)?, wanted)?;
        command.arg(format!("--disassemble-symbols={symbols}"));
    }
    let status = command.arg(linked).status().context("start llvm-objdump")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn deepest(chains: &[Chain]) -> Result<usize> {
    let deepest = chains.iter().map(|chain| chain.bytes).max();
    deepest.context("the object has no program")
}

fn objdump(object: &Object) -> Result<PathBuf> {
    llvm_tool("llvm-objdump", object.toolchain.compiler.version.llvm)
        .context("there is no llvm-objdump: install your distribution's package llvm")
}

fn plan(workspace: &Workspace) -> Plan<'_> {
    let target_dir = workspace.target.join("ebpf");
    Plan {
        workspace: &workspace.root,
        arch: ARCH,
        embed: target_dir.join("datapath.o"),
        target_dir,
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
