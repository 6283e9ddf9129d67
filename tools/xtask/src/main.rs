//! `cargo xtask`: set up, build, demonstrate and test this workspace.
fn main() {}
