//! `dpctl endpoint`

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Context, Outcome};
use crate::{
    api::{EndpointSpec, EndpointView},
    table::{self, list, numbers, words},
};

/// Where `ip netns` keeps network namespaces by name.
const NAMED_NAMESPACES: &str = "/run/netns";

const LIST_EXAMPLES: &str = "\
Examples:
  dpctl endpoint list
  dpctl --node n1 --output json endpoint list | jq -r '.[].id'";

const ADD_EXAMPLES: &str = "\
Examples:
  ip netns add web
  dpctl endpoint add web --netns web --identity 1000
  dpctl endpoint add db --netns /proc/4711/ns/net --identity 1001 --address 10.244.1.20";

const REMOVE_EXAMPLES: &str = "\
Examples:
  dpctl endpoint remove web";

/// List, connect and disconnect pods
#[derive(Debug, Subcommand)]
pub(super) enum Endpoint {
    /// List the pods that are connected
    #[command(after_help = LIST_EXAMPLES)]
    List(super::Nothing),
    Add(Add),
    Remove(Remove),
}

/// Connect a network namespace as a pod
#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(super) struct Add {
    /// What to call it: 1 to 63 letters, digits, `_`, `.` or `-`
    id: String,

    /// Its network namespace: a name as in `ip netns list`, or a path
    #[arg(long, value_name = "NAME|PATH")]
    netns: PathBuf,

    /// Its security identity
    #[arg(long, value_name = "NUMBER")]
    identity: u32,

    /// Name of the interface that it gets
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    interface: String,

    /// Its address, once per family [default: one of each family is allocated]
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
}

/// Disconnect a pod and give its addresses back
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub(super) struct Remove {
    /// What it is called
    id: String,
}

impl Endpoint {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match self {
            Self::List(_) => context.show(&client.endpoints()?, |endpoints| rows(endpoints)),
            Self::Add(add) => {
                let added = client.add_endpoint(&add.request())?;
                context.show(&added, |added| rows(std::slice::from_ref(added)))
            }
            Self::Remove(Remove { id }) => {
                client.remove_endpoint(id)?;
                Ok(Outcome::default())
            }
        }
    }
}

impl Add {
    fn request(&self) -> EndpointSpec {
        EndpointSpec {
            id: self.id.clone(),
            netns: namespace(&self.netns),
            interface: self.interface.clone(),
            identity: Some(self.identity),
            addresses: self.addresses.clone(),
            ..EndpointSpec::default()
        }
    }
}

/// Takes a plain word for the name of a namespace; anything with a slash is a path.
fn namespace(given: &Path) -> PathBuf {
    match given.to_str() {
        Some(name) if !name.contains('/') => Path::new(NAMED_NAMESPACES).join(name),
        // The agent may be in another directory.
        _ => std::path::absolute(given).unwrap_or_else(|_| given.to_owned()),
    }
}

fn rows(endpoints: &[EndpointView]) -> String {
    let columns = [
        words("ID"),
        words("ADDRESSES"),
        numbers("IDENTITY"),
        words("NAMESPACE"),
        words("INTERFACE"),
        words("MAC"),
        words("HOST INTERFACE"),
    ];
    let rows = endpoints.iter().map(|endpoint| {
        vec![
            endpoint.id.clone(),
            list(&endpoint.addresses),
            endpoint.identity.to_string(),
            endpoint.netns.display().to_string(),
            endpoint.interface.clone(),
            endpoint.mac.clone(),
            format!("{} ({})", endpoint.host_interface, endpoint.host_index),
        ]
    });
    table::render(&columns, rows.collect(), "no pod is connected")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn a_word_is_a_name_and_the_rest_are_paths() {
        assert_eq!(namespace(Path::new("web")), Path::new("/run/netns/web"));
        assert_eq!(
            namespace(Path::new("/proc/7/ns/net")),
            Path::new("/proc/7/ns/net")
        );
        assert!(namespace(Path::new("./web")).is_absolute());
    }

    #[test]
    fn endpoints_read_well() {
        insta::assert_snapshot!(rows(&[sample::endpoint()]), @"
        ID     ADDRESSES                     IDENTITY  NAMESPACE         INTERFACE  MAC                HOST INTERFACE
        web-0  10.244.1.2, fd00:10:244:1::2      1001  /run/netns/web-0  eth0       02:11:22:33:44:55  dp0123456789a (7)
        ");
        insta::assert_snapshot!(rows(&[]), @"no pod is connected");
    }
}
