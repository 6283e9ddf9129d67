//! `dpctl endpoint`

mod add;
mod label;
mod pod;

use clap::{Args, Subcommand};

use super::{Context, Outcome};
use crate::{
    api::EndpointView,
    table::{self, list, numbers, words},
};

const LIST_EXAMPLES: &str = "\
Examples:
  dpctl endpoint list
  dpctl --node n1 --output json endpoint list | jq -r '.[].id'";

const REMOVE_EXAMPLES: &str = "\
Examples:
  dpctl endpoint remove web";

/// List, connect, label and disconnect pods
#[derive(Debug, Subcommand)]
pub(super) enum Endpoint {
    /// List the pods that are connected
    #[command(after_help = LIST_EXAMPLES)]
    List(super::Nothing),
    Add(add::Add),
    Label(label::Label),
    Remove(Remove),
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
            Self::Add(add) => add.run(context, &client),
            Self::Label(label) => label.run(context, &client),
            Self::Remove(Remove { id }) => {
                client.remove_endpoint(id)?;
                Ok(Outcome::default())
            }
        }
    }
}

fn rows(endpoints: &[EndpointView]) -> String {
    let columns = [
        words("ID"),
        words("POD"),
        words("ADDRESSES"),
        numbers("IDENTITY"),
        words("POLICY"),
        words("NETNS"),
        words("INTERFACE"),
        words("MAC"),
        words("HOST INTERFACE"),
    ];
    let rows = endpoints.iter().map(|endpoint| {
        vec![
            endpoint.id.clone(),
            pod::called(endpoint.namespace.as_deref(), endpoint.name.as_deref()),
            list(&endpoint.addresses),
            endpoint.identity.to_string(),
            judged(endpoint),
            endpoint.netns.display().to_string(),
            endpoint.interface.clone(),
            endpoint.mac.clone(),
            format!("{} ({})", endpoint.host_interface, endpoint.host_index),
        ]
    });
    table::render(&columns, rows.collect(), "no pod is connected")
}

/// In which directions it needs rules.
fn judged(endpoint: &EndpointView) -> String {
    let policy = &endpoint.policy;
    let directions = [(policy.ingress, "ingress"), (policy.egress, "egress")];
    let needed = directions.iter().filter(|(needed, _)| *needed);
    let mut words: Vec<_> = needed.map(|(_, word)| *word).collect();
    if words.is_empty() {
        words.push("-");
    }
    if policy.audit {
        words.push("audited");
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn endpoints_read_well() {
        let labelled = EndpointView {
            namespace: Some("shop".to_owned()),
            name: Some("web-0".to_owned()),
            policy: datapath_user::EndpointPolicy {
                ingress: true,
                audit: true,
                ..datapath_user::EndpointPolicy::default()
            },
            ..sample::endpoint()
        };
        insta::assert_snapshot!(rows(&[labelled, sample::endpoint()]), @"
        ID     POD         ADDRESSES                     IDENTITY  POLICY            NETNS             INTERFACE  MAC                HOST INTERFACE
        web-0  shop/web-0  10.244.1.2, fd00:10:244:1::2      1001  ingress, audited  /run/netns/web-0  eth0       02:11:22:33:44:55  dp0123456789a (7)
        web-0  -           10.244.1.2, fd00:10:244:1::2      1001  -                 /run/netns/web-0  eth0       02:11:22:33:44:55  dp0123456789a (7)
        ");
        insta::assert_snapshot!(rows(&[]), @"no pod is connected");
    }
}
