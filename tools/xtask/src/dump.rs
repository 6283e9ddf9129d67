//! The functions of an object, read from `llvm-objdump`.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use crate::build::process::capture;

/// A function of the object.
#[derive(Debug, PartialEq)]
pub(crate) struct Function {
    section: String,
    /// As `llvm-objdump --demangle` spells it.
    symbol: String,
    /// As the source spells it, about.
    name: String,
    /// As the kernel counts them: a 64-bit load is two.
    instructions: usize,
}

/// Every function of `object`, in its order.
///
/// # Errors
///
/// If `objdump` fails.
pub(crate) fn functions(objdump: &Path, object: &Path) -> Result<Vec<Function>> {
    let mut command = Command::new(objdump);
    command.args(["--disassemble", "--demangle"]).arg(object);
    let text = capture(&mut command).map_err(|said| anyhow!("{}: {said}", objdump.display()))?;
    Ok(parse(&text))
}

/// A line for each function, and their sum.
pub(crate) fn table(functions: &[Function]) -> String {
    let total: usize = functions.iter().map(|function| function.instructions).sum();
    let rows = functions.iter().map(|function| {
        let Function {
            section,
            name,
            instructions,
            ..
        } = function;
        format!("{instructions:>12}  {name} ({section})")
    });
    let lines: Vec<String> = std::iter::once(format!("{:>12}  function", "instructions"))
        .chain(rows)
        .chain([format!("{total:>12}  in all\n")])
        .collect();
    lines.join("\n")
}

/// The symbols of the functions called `wanted`, or whose path ends in it, with commas.
///
/// # Errors
///
/// If there is none.
pub(crate) fn symbols(functions: &[Function], wanted: &str) -> Result<String> {
    let end = format!("::{wanted}");
    let found: Vec<&str> = functions
        .iter()
        .filter(|function| function.name == wanted || function.name.ends_with(&end))
        .map(|function| function.symbol.as_str())
        .collect();
    if found.is_empty() {
        let names: Vec<&str> = functions.iter().map(|f| f.name.as_str()).collect();
        bail!(
            "the object has no function {wanted:?} (it may be inlined). It has:\n  {}",
            names.join("\n  ")
        );
    }
    Ok(found.join(","))
}

fn parse(text: &str) -> Vec<Function> {
    let mut functions: Vec<Function> = Vec::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Disassembly of section ") {
            section = name.trim_end_matches(':');
        } else if let Some(symbol) = label(line) {
            functions.push(Function {
                section: section.to_owned(),
                symbol: symbol.to_owned(),
                name: readable(symbol),
                instructions: 0,
            });
        } else if let Some(function) = functions.last_mut() {
            function.instructions += instruction_bytes(line) / 8;
        }
    }
    functions
}

/// `from_pod` of `0000000000003138 <from_pod>:`.
fn label(line: &str) -> Option<&str> {
    let (address, name) = line.split_once(" <")?;
    let is_address = !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit());
    name.strip_suffix(">:").filter(|_| is_address)
}

/// Bytes of machine code in a line such as `  3:\t18 01 00 00 … 00\tr1 = 0x0 ll`.
fn instruction_bytes(line: &str) -> usize {
    let mut columns = line.split('\t');
    let is_address = columns
        .next()
        .and_then(|address| address.trim().strip_suffix(':'))
        .is_some_and(|address| address.chars().all(|c| c.is_ascii_digit()));
    match columns.next() {
        Some(bytes) if is_address => bytes.split_whitespace().count(),
        _ => 0,
    }
}

/// Undoes what llvm-objdump leaves of Rust's older mangling: escapes and the hash.
fn readable(name: &str) -> String {
    let name = match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()) => {
            path
        }
        _ => name,
    };
    let escapes = [
        ("_$", "$"),
        ("$LT$", "<"),
        ("$GT$", ">"),
        ("$RF$", "&"),
        ("$C$", ","),
        ("$u20$", " "),
        ("$u7b$", "{"),
        ("$u7d$", "}"),
        ("..", "::"),
    ];
    escapes
        .into_iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "
/t/datapath.o:\tfile format elf64-bpf

Disassembly of section .text:

0000000000000000 <kern::nat::reserve::h2fa9d373a96d1e6d>:
       0:\t15 03 09 00 00 00 00 00\tif r3 == 0x0 goto +0x9 <memcpy+0x50>
       1:\t95 00 00 00 00 00 00 00\texit

Disassembly of section classifier:

0000000000000000 <from_pod>:
       0:\t18 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00\tr1 = 0x0 ll
       2:\t95 00 00 00 00 00 00 00\texit
";

    #[test]
    fn instructions_are_counted_as_the_kernel_does() {
        let table = table(&parse(DUMP));
        assert!(
            table.contains("           2  kern::nat::reserve (.text)\n"),
            "{table}"
        );
        assert!(
            table.contains("           3  from_pod (classifier)\n"),
            "{table}"
        );
        assert!(table.ends_with("           5  in all\n"), "{table}");
    }

    #[test]
    fn a_function_is_found_by_the_end_of_its_path() {
        for wanted in ["reserve", "nat::reserve", "kern::nat::reserve"] {
            let symbols = symbols(&parse(DUMP), wanted).unwrap();
            assert_eq!(symbols, "kern::nat::reserve::h2fa9d373a96d1e6d");
        }
        let err = symbols(&parse(DUMP), "serve").unwrap_err().to_string();
        assert!(err.contains("from_pod"), "{err}");
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(
            readable("_$LT$a..Kernel$u20$as$u20$b..Env$GT$::fib::h1870958635c98b58"),
            "<a::Kernel as b::Env>::fib"
        );
        assert_eq!(
            readable("flow::lookup::_$u7b$$u7b$closure$u7d$$u7d$::hcb8b4f6b83258bd3"),
            "flow::lookup::{{closure}}"
        );
        assert_eq!(readable("to_host"), "to_host");
    }

    #[test]
    fn an_empty_dump_has_no_functions() {
        assert!(parse("").is_empty());
    }
}
