//! One byte there and back, on one CPU.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use datapath_conformance::family::Family;
use serde_json::json;

use super::connection::{Connection, failed};
use crate::{
    affinity::{self, pin_to},
    contest::{Case, Contest, Entry, Gate, Sample, Side},
    error::{Error, Result},
    machine::Machine,
    options::Options,
    rig::Rig,
    stopwatch::Stopwatch,
};

/// Round trips before the timed ones.
const AHEAD: u32 = 100;

/// `pingpong`: a byte of TCP from a pod of node 1 to a pod of node 2 and back, so many times. Both
/// ends run on one CPU: the time to wake another one would drown everything else.
#[derive(Clone, Copy, Debug)]
pub struct PingPong;

impl Case for PingPong {
    fn name(&self) -> &'static str {
        "pingpong"
    }

    fn about(&self) -> &'static str {
        "one byte of TCP there and back through the tunnel, both ends on one CPU, against plain routing"
    }

    fn unit(&self) -> &'static str {
        "round trip"
    }

    fn prepare(&self, options: &Options, machine: &mut Machine) -> Result<Vec<Box<dyn Contest>>> {
        let cpu = affinity::last()?;
        let datapath = Rig::datapath(options.underlay)?;
        datapath.describe("datapath", machine)?;
        let plain = Rig::plain()?;
        plain.describe("plain", machine)?;
        Ok(vec![Box::new(Game {
            datapath,
            plain,
            family: options.family,
            round_trips: options.round_trips,
            cpu,
        })])
    }
}

struct Game {
    datapath: Rig,
    plain: Rig,
    family: Family,
    round_trips: u32,
    cpu: usize,
}

impl Game {
    fn entry(&self, variant: &'static str) -> Entry {
        let trips = json!(self.round_trips);
        Entry::new(
            variant,
            [("round-trips", trips), ("family", json!(self.family))],
        )
    }
}

impl Contest for Game {
    fn ours(&self) -> Entry {
        let mut entry = self.entry("datapath");
        entry
            .params
            .insert("underlay", json!(self.datapath.underlay()));
        entry
    }

    fn theirs(&self) -> Entry {
        self.entry("plain")
    }

    fn against(&self) -> &'static str {
        "plain"
    }

    fn gate(&self) -> Option<Gate> {
        Some(Gate::CostAtMost(1.05))
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        let rig = match side {
            Side::Ours => &self.datapath,
            Side::Theirs => &self.plain,
        };
        let mut connection = Connection::open(rig, self.family)?;
        let ((elapsed, cpu), returned) = play(&mut connection, self.cpu, self.round_trips)?;
        connection.check(rig)?;
        let sent = u64::from(self.round_trips);
        Ok(Sample {
            units: sent,
            elapsed,
            cpu,
            sent,
            delivered: returned,
            flaw: None,
            observed: Vec::new(),
        })
    }
}

/// Time passed and CPU time used, and how many bytes came back right.
type Played = ((Duration, Duration), u64);

/// Plays, both ends on one CPU, and returns what came of it.
fn play(connection: &mut Connection, cpu: usize, round_trips: u32) -> Result<Played> {
    let Connection { client, server } = connection;
    thread::scope(|scope| {
        let spawn = || thread::Builder::new().name("player".to_owned());
        let echo = spawn()
            .spawn_scoped(scope, move || {
                pin_to(cpu)?;
                let mut byte = [0];
                for _ in 0..AHEAD + round_trips {
                    exchange_back(server, &mut byte)?;
                }
                Ok::<_, Error>(())
            })
            .map_err(Error::os("start a thread for", "the server"))?;
        let player = spawn()
            .spawn_scoped(scope, move || {
                pin_to(cpu)?;
                exchange(client, AHEAD)?;
                let watch = Stopwatch::start()?;
                let right = exchange(client, round_trips)?;
                Ok::<_, Error>((watch.read()?, right))
            })
            .map_err(Error::os("start a thread for", "the client"))?;
        let result = player
            .join()
            .unwrap_or_else(|_| Ok((Default::default(), 0)));
        echo.join().unwrap_or(Ok(()))?;
        result
    })
}

/// Sends bytes, each after the one before has come back; returns how many came back right.
fn exchange(client: &mut TcpStream, round_trips: u32) -> Result<u64> {
    let mut right = 0;
    for number in 0..round_trips {
        let [sent, ..] = number.to_le_bytes();
        let mut back = [!sent];
        client
            .write_all(&[sent])
            .and_then(|()| client.read_exact(&mut back))
            .map_err(failed("play with", "a pod"))?;
        right += u64::from(back == [sent]);
    }
    Ok(right)
}

fn exchange_back(server: &mut TcpStream, byte: &mut [u8; 1]) -> Result<()> {
    server
        .read_exact(byte)
        .and_then(|()| server.write_all(byte))
        .map_err(failed("answer in", "a pod"))
}
