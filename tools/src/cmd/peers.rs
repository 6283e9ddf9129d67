//! `dpctl peers`

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::{Context, Nothing, Outcome};
use crate::{
    api::{PeerSpec, PeerView, RemotePod},
    table::{self, list, numbers, words},
};

const EXAMPLES: &str = "\
Examples:
  dpctl peers
  dpctl peers set n2 --address 192.0.2.12 --pod-cidr 10.244.2.0/24 --pod 10.244.2.2=2001
  dpctl peers remove n2";

const SET_EXAMPLES: &str = "\
Examples:
  dpctl peers set n2 --address 192.0.2.12 --pod-cidr 10.244.2.0/24 --pod-cidr fd00:10:244:2::/64 \\
      --node-address 2001:db8:0:1::12 --pod 10.244.2.2=2001 --pod fd00:10:244:2::2=2001";

/// Show the other nodes, and how their pods are reached
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Peers {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the other nodes (as without a verb)
    #[command(after_help = EXAMPLES)]
    List(Nothing),
    Set(Set),
    Remove(Remove),
}

/// Add a node, or replace what is known of it
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
struct Set {
    /// The node's name
    name: String,

    /// Its end of the tunnel, on the underlay
    #[arg(long, value_name = "ADDRESS")]
    address: IpAddr,

    /// Another address of it
    #[arg(long = "node-address", value_name = "ADDRESS")]
    node_addresses: Vec<IpAddr>,

    /// A prefix of its pods
    #[arg(long = "pod-cidr", value_name = "PREFIX")]
    pod_cidrs: Vec<IpNet>,

    /// A pod of it, and the pod's security identity
    #[arg(long = "pod", value_name = "ADDRESS=IDENTITY", value_parser = pod)]
    pods: Vec<RemotePod>,

    /// The uplink that it is behind [default: the node's first]
    #[arg(long, value_name = "INTERFACE")]
    uplink: Option<String>,
}

/// Forget a node
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Remove {
    /// The node's name
    name: String,
}

impl Peers {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match &self.verb {
            None | Some(Verb::List(_)) => context.show(&client.peers()?, |peers| rows(peers)),
            Some(Verb::Set(set)) => {
                let peer = client.put_peer(&set.request())?;
                context.show(&peer, |peer| rows(std::slice::from_ref(peer)))
            }
            Some(Verb::Remove(Remove { name })) => {
                client.remove_peer(name)?;
                Ok(Outcome::default())
            }
        }
    }
}

impl Set {
    fn request(&self) -> PeerSpec {
        PeerSpec {
            name: self.name.clone(),
            address: self.address,
            node_addresses: self.node_addresses.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            pods: self.pods.clone(),
            uplink: self.uplink.clone(),
            labels: BTreeMap::new(),
        }
    }
}

fn pod(text: &str) -> Result<RemotePod, String> {
    let parts = text.split_once('=');
    let (address, identity) = parts.ok_or("write ADDRESS=IDENTITY, as in 10.244.2.2=2001")?;
    let address = IpAddr::from_str(address).map_err(|e| format!("{address}: {e}"))?;
    let identity = u32::from_str(identity).map_err(|e| format!("identity {identity:?}: {e}"))?;
    Ok(RemotePod::new(address, Some(identity)))
}

fn rows(peers: &[PeerView]) -> String {
    let columns = [
        words("NAME"),
        words("ADDRESS"),
        words("OTHER ADDRESSES"),
        words("POD PREFIXES"),
        numbers("PODS"),
        words("UPLINK"),
        numbers("GENERATION"),
    ];
    let rows = peers.iter().map(|peer| {
        vec![
            peer.name.clone(),
            peer.address.to_string(),
            list(&peer.node_addresses),
            list(&peer.pod_cidrs),
            peer.pods.to_string(),
            peer.interface.clone(),
            peer.generation.to_string(),
        ]
    });
    table::render(&columns, rows.collect(), "no other node is known")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn peers_read_well() {
        insta::assert_snapshot!(rows(&[sample::peer()]), @"
        NAME  ADDRESS     OTHER ADDRESSES   POD PREFIXES                       PODS  UPLINK  GENERATION
        n2    192.0.2.12  2001:db8:0:1::12  10.244.2.0/24, fd00:10:244:2::/64     4  eth0             3
        ");
        insta::assert_snapshot!(rows(&[]), @"no other node is known");
    }

    #[test]
    fn pods_are_read_strictly() {
        assert_eq!(pod("fd00::2=7").unwrap().identity, Some(7));
        for (bad, why) in [
            ("10.0.0.1", "ADDRESS=IDENTITY"),
            ("10.0.0=1", "10.0.0: "),
            ("10.0.0.1=-1", "\"-1\""),
        ] {
            let said = pod(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
