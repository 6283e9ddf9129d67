//! Numbers of identities survive a process that is killed at any moment.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, io};

use datapath_user::policy::{IdentityAllocator, Labels, LocalIdentities, source};

/// The file, in the process that is killed.
const FILE: &str = "DATAPATH_TEST_IDENTITIES";

fn labels(app: u64) -> Labels {
    Labels::default().with(source::K8S, "app", &app.to_string())
}

#[test]
fn numbers_survive_a_kill_at_any_moment() {
    if let Ok(file) = env::var(FILE) {
        allocate_forever(Path::new(&file));
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("identities");
    let mut told: BTreeMap<u64, u32> = BTreeMap::new();
    for round in 0..12_usize {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "numbers_survive_a_kill_at_any_moment",
                "--nocapture",
            ])
            .env(FILE, &file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let numbers = lines.map_while(Result::ok).filter_map(|line| {
            let (app, number) = line.strip_prefix("identity ")?.split_once(' ')?;
            Some((app.parse::<u64>().ok()?, number.parse::<u32>().ok()?))
        });
        let mut count = 0;
        for (app, number) in numbers {
            let known = told.insert(app, number);
            assert!(
                known.is_none_or(|known| known == number),
                "app={app} was {known:?}"
            );
            count += 1;
            if count > round * 7 {
                child.kill().unwrap();
            }
        }
        assert!(
            count > round * 7,
            "round {round} ended by itself after {count}"
        );
        child.wait().unwrap();
    }
    let mut all = LocalIdentities::open(&file).unwrap();
    let mut numbers: Vec<u32> = told.values().copied().collect();
    for (app, number) in &told {
        assert_eq!(all.labels(*number), Some(labels(*app)));
        assert_eq!(all.allocate(&labels(*app)).unwrap(), *number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), told.len(), "a number was given twice");
    assert!(told.len() > 60);
}

/// Tells of a number only once it is known to be kept.
fn allocate_forever(file: &Path) -> ! {
    let mut all = LocalIdentities::open(file).unwrap();
    for app in 0.. {
        let number = all.allocate(&labels(app)).unwrap();
        let told = writeln!(io::stdout(), "identity {app} {number}");
        told.expect("the one that kills reads on");
    }
    unreachable!("there are more labels than numbers");
}
