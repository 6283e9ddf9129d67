//! What a fuzzer's bytes stand for: a node's settings, then things that happen to it.
//!
//! Bytes are read by `arbitrary`, step after step until there are none left, so that most of what
//! a fuzzer changes changes one step. The same bytes always do the same.

mod check;
mod frames;
mod input;
mod world;

use arbitrary::{Arbitrary, Unstructured};

use self::input::{Settings, Step};
use self::world::World;

/// Has happen what the bytes say.
///
/// # Panics
///
/// Where the packet path panics, or one of the checks does not hold.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let Ok(settings) = Settings::arbitrary(&mut bytes) else {
        return;
    };
    let mut world = World::new(&settings);
    while !bytes.is_empty()
        && let Ok(step) = Step::arbitrary(&mut bytes)
    {
        world.take(&step);
    }
}

/// What the bytes say, for people.
pub(crate) fn describe(data: &[u8]) -> String {
    let mut bytes = Unstructured::new(data);
    let Ok(settings) = Settings::arbitrary(&mut bytes) else {
        return "too short for settings".to_owned();
    };
    let mut lines = vec![format!("{settings:?}")];
    while !bytes.is_empty()
        && let Ok(step) = Step::arbitrary(&mut bytes)
    {
        lines.push(format!("{step:?}"));
    }
    lines.join("\n")
}
