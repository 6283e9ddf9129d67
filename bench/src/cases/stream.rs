//! A TCP stream of fixed length through the tunnel, against plain routing.

use std::{
    io::{Read, Write},
    thread,
};

use datapath_conformance::{
    family::Family,
    offload::{self, Offload},
    topology::plan::UPLINK,
};
use serde_json::json;

use super::connection::{Connection, failed};
use crate::{
    contest::{Case, Contest, Entry, Gate, Sample, Side},
    error::{Error, Result},
    machine::Machine,
    options::Options,
    rig::Rig,
    stopwatch::Stopwatch,
};

/// Bytes of one write, and of one read at most.
const CHUNK_BYTES: usize = 256 << 10;
const KIBIBYTE: u64 = 1 << 10;
/// Part of the stream that goes ahead of it untimed, so that windows have opened.
const AHEAD: u64 = 8;

/// `stream`: so many MiB from a pod of node 1 to a pod of node 2, on a connection of their own each
/// time, until the receiver has said that it has them all. TSO is on: what crosses the underlay
/// are frames far above its MTU, or the round is void.
#[derive(Clone, Copy, Debug)]
pub struct Stream;

impl Case for Stream {
    fn name(&self) -> &'static str {
        "stream"
    }

    fn about(&self) -> &'static str {
        "a TCP stream through the tunnel, TSO on, against plain routing"
    }

    fn unit(&self) -> &'static str {
        "KiB"
    }

    fn prepare(&self, options: &Options, machine: &mut Machine) -> Result<Vec<Box<dyn Contest>>> {
        let rigs = [Rig::datapath(options.underlay)?, Rig::plain()?];
        for (rig, name) in rigs.iter().zip(["datapath", "plain"]) {
            rig.describe(name, machine)?;
            let pod = rig.pod(1, 1)?;
            if offload::get(pod, UPLINK, Offload::Tso)? != Some(true) {
                return Err(Error::Invalid {
                    what: "tcp-segmentation-offload of",
                    value: pod.name().to_owned(),
                    rule: "this bench is about segments that interfaces cut: it must be on",
                });
            }
        }
        let [datapath, plain] = rigs;
        Ok(vec![Box::new(Streams {
            datapath,
            plain,
            family: options.family,
            bytes: u64::from(options.mebibytes) << 20,
        })])
    }
}

struct Streams {
    datapath: Rig,
    plain: Rig,
    family: Family,
    bytes: u64,
}

impl Streams {
    fn entry(&self, variant: &'static str) -> Entry {
        let family = json!(self.family);
        Entry::new(
            variant,
            [("mebibytes", json!(self.bytes >> 20)), ("family", family)],
        )
    }
}

impl Contest for Streams {
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
        Some(Gate::SpeedAtLeast(0.95))
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        let rig = match side {
            Side::Ours => &self.datapath,
            Side::Theirs => &self.plain,
        };
        let mut connection = Connection::open(rig, self.family)?;
        transfer(&mut connection, self.bytes / AHEAD)?;
        let (frames_before, bytes_before) = rig.uplink_sent(1)?;
        let watch = Stopwatch::start()?;
        let delivered = transfer(&mut connection, self.bytes)?;
        let (elapsed, cpu) = watch.read()?;
        let (frames, bytes) = rig.uplink_sent(1)?;
        connection.check(rig)?;
        let mean = mean(bytes - bytes_before, frames - frames_before);
        let mtu_bytes = rig.node(1)?.namespace().link(UPLINK)?.mtu_bytes;
        let cut = mean < 2.0 * f64::from(mtu_bytes);
        Ok(Sample {
            units: self.bytes / KIBIBYTE,
            elapsed,
            cpu,
            sent: self.bytes,
            delivered,
            flaw: cut.then_some("segments were cut before the underlay, in spite of TSO"),
            observed: vec![("mean frame on the underlay, bytes", mean)],
        })
    }
}

/// Sends so many bytes, waits until the other end says that it has them, and returns how many it
/// has.
fn transfer(connection: &mut Connection, bytes: u64) -> Result<u64> {
    let Connection { client, server } = connection;
    thread::scope(|scope| {
        let receiver = thread::Builder::new()
            .name("receiver".to_owned())
            .spawn_scoped(scope, move || {
                let mut buffer = vec![0; CHUNK_BYTES];
                let mut received = 0;
                while received < bytes {
                    match server.read(&mut buffer)? {
                        0 => break,
                        length => received += length as u64,
                    }
                }
                server.write_all(&[1])?;
                Ok(received)
            })
            .map_err(Error::os("start a thread for", "the receiver"))?;
        let chunk = vec![0x5a; CHUNK_BYTES];
        let mut left = bytes;
        while left > 0 {
            let length = usize::try_from(left)
                .unwrap_or(CHUNK_BYTES)
                .min(CHUNK_BYTES);
            let part = chunk.get(..length).unwrap_or_default();
            client.write_all(part).map_err(failed("send to", "a pod"))?;
            left -= length as u64;
        }
        client
            .read_exact(&mut [0])
            .map_err(failed("hear from", "a pod"))?;
        let result = receiver.join().unwrap_or(Ok(0));
        result.map_err(failed("receive in", "a pod"))
    })
}

#[allow(clippy::cast_precision_loss, reason = "it is a mean, for reading")]
fn mean(bytes: u64, frames: u64) -> f64 {
    bytes as f64 / frames.max(1) as f64
}
