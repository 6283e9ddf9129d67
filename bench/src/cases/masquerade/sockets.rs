//! That what is measured is right: sockets through the same masquerade, and checksums that somebody
//! checks.

use std::{fs, net::SocketAddr, time::Duration};

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    offload::{self, Offload},
    probe::{EchoServer, Options, TcpSession, UdpSession},
    topology::plan::{self, UPLINK},
};

use super::variant::Variant;
use crate::{
    error::{Error, Result},
    rig::Rig,
};

/// Connections, and as many conversations by datagram, of each pod with each setting.
const CONVERSATIONS: u16 = 5;
/// Bytes that go both ways in each.
const BYTES: usize = 1000;
/// Port of the servers.
const PORT: u16 = 7007;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Talks to the outside from every pod, by TCP and UDP, with and without checksum offload in the
/// pod. On the way to the receiver every checksum is completed, where the sender left that to
/// others, and the receiver checks it: a translation that spoils one loses the packet.
///
/// # Errors
///
/// [`Error::Lab`] where an answer does not come, or does not hold what was sent;
/// [`Error::Spoilt`] where a packet came with a wrong checksum or another source than the node's.
pub(in crate::cases) fn check(rig: &Rig, variant: Variant) -> Result<()> {
    let outside = rig.fabric().outside();
    offload::set(
        rig.fabric().router(),
        "ext",
        &[(Offload::TxChecksum, false)],
    )?;
    offload::set(outside, UPLINK, &[(Offload::RxChecksum, false)])?;
    let server = EchoServer::start(outside, &[PORT], &[PORT])?;
    let to = SocketAddr::new(plan::outside_address(Family::Ipv4), PORT);
    let node = plan::node_address(1, Family::Ipv4);
    let options = Options::default().with_timeout(PATIENCE);
    let before = checksum_errors(outside)?;
    for pod in rig.node(1)?.pods() {
        for offloaded in [false, true] {
            offload::set(pod, UPLINK, &[(Offload::TxChecksum, offloaded)])?;
            for _ in 0..CONVERSATIONS {
                let mut datagrams = UdpSession::open(pod, to, &options)?;
                datagrams.echo(BYTES)?;
                let seen = datagrams.seen_source()?;
                let mut connection = TcpSession::connect(pod, to, &options)?;
                connection.echo(BYTES)?;
                for seen in [seen, connection.seen_source()] {
                    if seen.ip() != node {
                        return Err(Error::Spoilt {
                            variant: variant.name(),
                            what: format!("{} came as {seen}, not as {node}", pod.name()),
                        });
                    }
                }
                connection.close()?;
            }
        }
    }
    drop(server);
    let wrong = checksum_errors(outside)? - before;
    if wrong > 0 {
        return Err(Error::Spoilt {
            variant: variant.name(),
            what: format!("{wrong} packets came with a wrong checksum"),
        });
    }
    Ok(())
}

/// Packets that the namespace has refused for their checksum: `InCsumErrors` of all protocols.
fn checksum_errors(namespace: &Namespace) -> Result<u64> {
    let file = "/proc/thread-self/net/snmp";
    let text = namespace.run(|| fs::read_to_string(file))?;
    let text = text.map_err(Error::os("read", file))?;
    Ok(sum_of(&text, "InCsumErrors"))
}

/// The sum of a column over all tables: a line of names and one of values each.
fn sum_of(text: &str, column: &str) -> u64 {
    let lines: Vec<_> = text.lines().collect();
    let tables = lines.chunks_exact(2).filter_map(|table| {
        let [names, values] = table else {
            return None;
        };
        let place = names.split_whitespace().position(|name| name == column)?;
        values.split_whitespace().nth(place)?.parse::<u64>().ok()
    });
    tables.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_summed_over_all_tables() {
        let text =
            "Tcp: InSegs InCsumErrors\nTcp: 10 2\nUdp: InErrors InCsumErrors X\nUdp: 7 3 9\n";
        assert_eq!(sum_of(text, "InCsumErrors"), 5);
        assert_eq!(sum_of(text, "Missing"), 0);
    }
}
