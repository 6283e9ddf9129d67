//! Power cuts and failing disks, tried at every write to a simulated disk.
//!
//! Unlike a kill, a power cut also loses what the kernel had not written out: of the writes since
//! the last sync, any part may be on the disk, in any order, and torn within one write.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};
use redb::StorageBackend;

use crate::{Families, Ipam, IpamError, Options, Owner, PoolSpec};

/// What a disk tears a write into.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Event {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
}

impl Event {
    /// Does to `content` what the event says, as far as `lands` lets each sector.
    fn apply(&self, content: &mut Vec<u8>, mut lands: impl FnMut() -> bool) {
        match self {
            Self::Write(offset, data) => {
                for (index, sector) in data.chunks(SECTOR).enumerate() {
                    let start = offset + index * SECTOR;
                    let end = start + sector.len();
                    if lands() && end <= content.len() {
                        content[start..end].copy_from_slice(sector);
                    }
                }
            }
            Self::SetLen(len) => {
                if lands() {
                    content.resize(*len, 0);
                }
            }
            Self::Sync => {}
        }
    }
}

/// A disk that remembers everything done to it, and fails from the `fails_at`th event on.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    /// What reads see.
    content: Vec<u8>,
    log: Vec<Event>,
    fails_at: Option<usize>,
}

impl Disk {
    fn holding(content: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.0.lock().unwrap().content = content;
        disk
    }

    fn events(&self) -> usize {
        self.0.lock().unwrap().log.len()
    }

    fn event(&self, event: Event) -> io::Result<()> {
        let state = &mut *self.0.lock().unwrap();
        if state.fails_at.is_some_and(|at| state.log.len() >= at) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        event.apply(&mut state.content, || true);
        state.log.push(event);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found = state.content.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.event(Event::SetLen(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.event(Event::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.event(Event::Write(offset, data.to_vec()))
    }
}

/// The same sequence every time: a failure must be repeatable.
fn random() -> TestRng {
    TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32])
}

type Leases = BTreeMap<Owner, Vec<IpAddr>>;

fn open(disk: &Disk) -> Result<Ipam, IpamError> {
    let ranges = ["10.0.0.0/28", "fd00::/64"];
    let mut options = Options::new(vec![PoolSpec {
        name: "p".to_owned(),
        ranges: ranges.iter().map(|net| net.parse().unwrap()).collect(),
    }]);
    options.cooldown = std::time::Duration::ZERO;
    Ipam::on(disk.clone(), Path::new("simulated"), options)
}

fn found(ipam: &Ipam) -> Leases {
    let leases = ipam.leases().unwrap().into_iter();
    leases.map(|lease| (lease.owner, lease.addresses)).collect()
}

/// Does one random operation, and the same to `leases` once it is acknowledged.
fn churn(ipam: &Ipam, random: &mut TestRng, leases: &mut Leases) -> Result<(), IpamError> {
    let owner = Owner::new(format!("c{}", random.random_range(0..12)), "eth0").unwrap();
    if leases.get(&owner).is_some() {
        ipam.release(&owner)?;
        leases.remove(&owner);
    } else {
        let lease = ipam.allocate("p", &owner, Families::Dual)?;
        leases.insert(owner, lease.addresses);
    }
    Ok(())
}

/// Opening verifies that the tables agree; this adds that no address is counted twice or lost.
fn assert_sound(ipam: &Ipam) {
    let held: Vec<IpAddr> = found(ipam).into_values().flatten().collect();
    let used: u64 = ipam.usage().unwrap().iter().map(|usage| usage.used).sum();
    assert_eq!(used, held.len() as u64);
}

#[test]
fn after_a_power_cut_at_any_write_every_acknowledged_operation_is_there() {
    let disk = Disk::default();
    let ipam = open(&disk).unwrap();
    let start = disk.0.lock().unwrap().content.clone();
    let begin = disk.events();
    let mut random = random();
    // The state after each operation, and the number of events by the time it was acknowledged.
    let mut states = vec![(begin, Leases::new())];
    for _ in 0..30 {
        let mut leases = states.last().unwrap().1.clone();
        churn(&ipam, &mut random, &mut leases).unwrap();
        states.push((disk.events(), leases));
    }
    let log = disk.0.lock().unwrap().log.clone();
    drop(ipam);

    let (mut unreported, mut synced, mut pending) = (0, start, Vec::new());
    for (cut, event) in log.iter().enumerate().skip(begin) {
        pending.push(event);
        if matches!(event, Event::Sync) {
            for event in pending.drain(..) {
                event.apply(&mut synced, || true);
            }
        }
        let mut image = synced.clone();
        let odds = random.random_range(0..5);
        for event in &pending {
            event.apply(&mut image, || random.random_range(0..4) < odds);
        }
        let ipam = open(&Disk::holding(image)).unwrap_or_else(|e| panic!("cut at {cut}: {e:?}"));
        assert_sound(&ipam);
        let found = found(&ipam);
        let acknowledged = states
            .iter()
            .rposition(|(events, _)| *events <= cut + 1)
            .unwrap();
        if found != states[acknowledged].1 {
            unreported += 1;
            let next = states.get(acknowledged + 1).map(|(_, leases)| leases);
            assert_eq!(Some(&found), next, "cut at {cut}");
        }
    }
    // Otherwise the cuts were not where it matters.
    assert!(unreported > 0);
}

#[test]
fn a_disk_that_fails_at_any_write_is_reported_and_leaves_a_sound_store() {
    let disk = Disk::default();
    drop(open(&disk).unwrap());
    let start = disk.0.lock().unwrap().content.clone();

    let (mut refused_to_open, mut refused_later) = (0, 0);
    for fails_at in (0..200).step_by(3) {
        let disk = Disk::holding(start.clone());
        disk.0.lock().unwrap().fails_at = Some(fails_at);
        let (mut random, mut leases) = (random(), Leases::new());
        let failure = match open(&disk) {
            Err(failure) => {
                refused_to_open += 1;
                failure
            }
            Ok(ipam) => {
                refused_later += 1;
                (0..1000)
                    .find_map(|_| churn(&ipam, &mut random, &mut leases).err())
                    .expect("a thousand operations write more than the disk takes")
            }
        };
        assert!(matches!(failure, IpamError::Storage { .. }), "{failure:?}");
        assert!(failure.to_string().contains("reopen"), "{failure}");

        // The failed operation may have happened; what was acknowledged before it has.
        disk.0.lock().unwrap().fails_at = None;
        let ipam = open(&disk).unwrap();
        assert_sound(&ipam);
        let found = found(&ipam);
        let differing =
            |a: &Leases, b: &Leases| a.iter().filter(|(o, l)| b.get(o) != Some(l)).count();
        assert!(differing(&found, &leases) + differing(&leases, &found) <= 1);
    }
    assert!(refused_to_open > 0 && refused_later > 0);
}
