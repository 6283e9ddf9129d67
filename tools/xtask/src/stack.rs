//! How much stack the programs take at most, as kernels before 6.8 count.
//!
//! A program and the functions that it calls share 512 bytes. Those kernels round each frame up to
//! 32 bytes, later ones to 16 where programs are compiled (`round_up_stack_depth`,
//! `kernel/bpf/verifier.c`): what loads here may be refused there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::build::process::capture;

/// Bytes that there are (`MAX_BPF_STACK`).
pub(crate) const LIMIT: usize = 512;
/// Frames are counted in steps of this many bytes.
const STEP: usize = 32;
/// Calls of the deepest chain that is followed; kernels take 8 frames.
const DEPTH: usize = 16;

/// The calls of a program that take the most stack.
#[derive(Debug, PartialEq)]
pub(crate) struct Chain {
    /// Bytes, as they are counted.
    pub(crate) bytes: usize,
    /// Names and frames, the program's own first.
    pub(crate) frames: Vec<(String, usize)>,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frames = self.frames.iter();
        if let Some((program, _)) = frames.clone().next() {
            writeln!(f, "{program}: {} of {LIMIT} bytes", self.bytes)?;
        }
        frames.try_for_each(|(name, bytes)| writeln!(f, "  {bytes:>4}  {name}"))
    }
}

#[derive(Debug, Default)]
struct Function {
    name: String,
    bytes: usize,
    calls: Vec<Place>,
}

/// Section, and offset in it.
type Place = (String, usize);

/// The deepest chain of each program of `object`.
///
/// # Errors
///
/// If `objdump` fails.
pub(crate) fn chains(objdump: &Path, object: &Path) -> Result<Vec<Chain>> {
    let mut command = Command::new(objdump);
    command
        .args(["--disassemble", "--reloc", "--demangle"])
        .arg(object);
    let text = capture(&mut command).map_err(|said| anyhow!("{}: {said}", objdump.display()))?;
    let functions = parse(&text);
    let programs = functions.keys().filter(|(section, _)| section != ".text");
    Ok(programs
        .map(|place| deepest(&functions, place, DEPTH))
        .collect())
}

fn deepest(functions: &BTreeMap<Place, Function>, place: &Place, depth: usize) -> Chain {
    let none = Chain {
        bytes: 0,
        frames: Vec::new(),
    };
    let Some(function) = functions.get(place).filter(|_| depth > 0) else {
        return none;
    };
    let calls = function.calls.iter();
    let below = calls
        .map(|call| deepest(functions, call, depth - 1))
        .max_by_key(|chain| chain.bytes)
        .unwrap_or(none);
    let frame = (function.name.clone(), function.bytes);
    Chain {
        bytes: function.bytes.max(1).next_multiple_of(STEP) + below.bytes,
        frames: [frame].into_iter().chain(below.frames).collect(),
    }
}

/// Reads `llvm-objdump --disassemble --reloc`.
fn parse(text: &str) -> BTreeMap<Place, Function> {
    let mut functions = BTreeMap::new();
    let mut section = String::new();
    let mut before = "";
    let mut current: Option<(Place, Function)> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Disassembly of section ") {
            name.trim_end_matches(':').clone_into(&mut section);
        } else if let Some((offset, name)) = label(line) {
            functions.extend(current.take());
            let function = Function {
                name: name.to_owned(),
                ..Function::default()
            };
            current = Some(((section.clone(), offset), function));
        } else if let Some((_, function)) = &mut current {
            if let Some((index, bytes, words)) = instruction(line) {
                function.bytes = function.bytes.max(frame(before, words));
                before = words;
                if let Some(to) = call(index, &bytes) {
                    function.calls.push((section.clone(), to));
                }
            } else if let Some(to) = relocated(line)
                && let Some(call) = function.calls.last_mut()
                && call.0 == section
            {
                // The offset was counted as if it were from the section's beginning.
                let from = line.trim_start().split(':').next().unwrap_or_default();
                let from = usize::from_str_radix(from, 16).unwrap_or(0);
                *call = (to.to_owned(), call.1.saturating_sub(from));
            }
        }
    }
    functions.extend(current);
    functions
}

/// `(0x3138, "from_pod")` of `0000000000003138 <from_pod>:`.
fn label(line: &str) -> Option<(usize, &str)> {
    let (offset, name) = line.split_once(" <")?;
    let name = name.strip_suffix(">:")?;
    Some((usize::from_str_radix(offset, 16).ok()?, name))
}

/// Number, bytes and words of a line such as `  3:\t85 10 00 00 ff ff ff ff\tcall -0x1`.
fn instruction(line: &str) -> Option<(usize, Vec<u8>, &str)> {
    let mut columns = line.splitn(3, '\t');
    let index = columns.next()?.trim().strip_suffix(':')?.parse().ok()?;
    let bytes = columns.next()?.split_whitespace();
    let bytes: std::result::Result<Vec<u8>, _> =
        bytes.map(|byte| u8::from_str_radix(byte, 16)).collect();
    Some((index, bytes.ok()?, columns.next()?))
}

/// Offset that a call of a function of the object leads to; helpers' calls have none.
fn call(index: usize, bytes: &[u8]) -> Option<usize> {
    let [0x85, registers, _, _, immediate @ ..] = bytes else {
        return None;
    };
    if registers >> 4 != 1 {
        return None;
    }
    let by = i32::from_le_bytes(immediate.try_into().ok()?);
    let to = i32::try_from(index).ok()?.checked_add(by)?.checked_add(1)?;
    usize::try_from(to).ok()?.checked_mul(8)
}

/// The section in `\t\t0000000000000a28:  R_BPF_64_32\t.text`, of a call to another section.
fn relocated(line: &str) -> Option<&str> {
    line.split_once("R_BPF_64_32").map(|(_, name)| name.trim())
}

/// How far below its top an instruction reaches into the frame, bytes. An address in the frame is
/// made from a copy of `r10`, by the instruction behind the one that copies it.
fn frame(before: &str, words: &str) -> usize {
    let direct = words.split("r10 - 0x").skip(1);
    let copy = before.strip_suffix(" = r10");
    let computed = copy.and_then(|register| {
        let rest = words.strip_prefix(register)?;
        rest.strip_prefix(" += -0x")
    });
    let bytes = direct.chain(computed).filter_map(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
        usize::from_str_radix(digits, 16).ok()
    });
    bytes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "
Disassembly of section .text:

0000000000000000 <leaf>:
       0:\t7b 1a 98 ff 00 00 00 00\t*(u64 *)(r10 - 0x68) = r1
       1:\t95 00 00 00 00 00 00 00\texit

0000000000000010 <middle>:
       2:\tbf a2 00 00 00 00 00 00\tr2 = r10
       3:\t07 02 00 00 e0 ff ff ff\tr2 += -0x20
       4:\t04 03 00 00 00 fe ff ff\tw3 += -0x200
       5:\t85 10 00 00 fa ff ff ff\tcall -0x6
       6:\t85 00 00 00 01 00 00 00\tcall 0x1
       7:\t95 00 00 00 00 00 00 00\texit

Disassembly of section classifier:

0000000000000000 <other>:
       0:\t95 00 00 00 00 00 00 00\texit

0000000000000008 <from_pod>:
       1:\t7b 1a f8 ff 00 00 00 00\t*(u64 *)(r10 - 0x8) = r1
       2:\t85 10 00 00 01 00 00 00\tcall 0x1
\t\t0000000000000010:  R_BPF_64_32\t.text
       3:\t95 00 00 00 00 00 00 00\texit
";

    #[test]
    fn frames_of_the_deepest_chain_are_rounded_and_added() {
        let functions = parse(DUMP);
        let place = ("classifier".to_owned(), 8);
        let chain = deepest(&functions, &place, DEPTH);
        let frames = [("from_pod", 8), ("middle", 32), ("leaf", 104)];
        let frames = frames.map(|(name, bytes)| (name.to_owned(), bytes));
        assert_eq!(chain.frames, frames);
        assert_eq!(chain.bytes, 32 + 32 + 128);
    }

    #[test]
    fn a_program_without_calls_has_one_frame() {
        let functions = parse(DUMP);
        let chain = deepest(&functions, &("classifier".to_owned(), 0), DEPTH);
        assert_eq!((chain.bytes, chain.frames.len()), (32, 1));
    }
}
