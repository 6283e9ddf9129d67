//! `dpctl lab`

mod demo;
mod describe;
mod progress;

use clap::{Args, Subcommand, ValueEnum, value_parser};
use datapath_conformance::{
    signals,
    topology::{LabName, NodePlan, Plan},
};

use super::{Context, Outcome};
use crate::{
    error::Error,
    lab::{self, Spec},
};

const DEFAULT_NAME: &str = "Name of the lab [default: dp-lab]";

const UP_EXAMPLES: &str = "\
Examples:
  dpctl lab up
  dpctl lab up mine --nodes 3 --pods 1
  dpctl lab up --tunnel native       the underlay routes pods' addresses";

const DOWN_EXAMPLES: &str = "\
Examples:
  dpctl lab down
  dpctl lab down mine

A lab that is not there is no failure.";

const STATUS_EXAMPLES: &str = "\
Examples:
  dpctl lab status                   all labs of this machine
  dpctl lab status mine
  dpctl --output json lab status | jq -r '.[].nodes[].socket'";

/// Run nodes, pods and an outside host in network namespaces of this machine
#[derive(Debug, Subcommand)]
pub(super) enum Lab {
    Up(Up),
    Down(Down),
    Status(Status),
    Demo(demo::Demo),
}

/// Bring up a lab and leave it running
///
/// Its network lives in namespaces of its own; the machine's interfaces, addresses, routes and
/// sysctls are left alone.
#[derive(Debug, Args)]
#[command(after_help = UP_EXAMPLES, mut_arg("plain", |lab| lab.help(DEFAULT_NAME)))]
pub(super) struct Up {
    #[command(flatten)]
    name: Name,

    #[command(flatten)]
    size: Size,
}

/// Take a lab down, whoever started it
#[derive(Debug, Args)]
#[command(after_help = DOWN_EXAMPLES, mut_arg("plain", |lab| lab.help(DEFAULT_NAME)))]
pub(super) struct Down {
    #[command(flatten)]
    name: Name,
}

/// Show the labs that are up
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(super) struct Status {
    #[command(flatten)]
    name: Name,
}

/// Which lab.
#[derive(Debug, Args)]
struct Name {
    /// Name of the lab [default: all]
    #[arg(value_name = "LAB")]
    plain: Option<LabName>,

    /// The same
    #[arg(long = "name", value_name = "LAB", conflicts_with = "plain")]
    flag: Option<LabName>,
}

/// How large a lab is, and of which sort.
#[derive(Debug, Args)]
struct Size {
    /// How many nodes
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = value_parser!(u8).range(1..=200))]
    nodes: u8,

    /// How many pods each node has
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = value_parser!(u8).range(0..=200))]
    pods: u8,

    /// How nodes reach each other's pods
    #[arg(long, value_enum, value_name = "WAY", default_value_t = Tunnel::Direct)]
    tunnel: Tunnel,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tunnel {
    /// GENEVE, by the datapath itself
    Direct,
    /// By routes of the underlay, without a tunnel
    Native,
}

impl Lab {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        context.target.refuse()?;
        match self {
            Self::Up(verb) => verb.run(context),
            Self::Down(verb) => {
                let removed = lab::down(&verb.name.or_default())?;
                context.show(&removed, describe::removed)
            }
            Self::Status(verb) => {
                let labs = lab::status(verb.name.given())?;
                context.show(&labs, |labs| describe::labs(labs))
            }
            Self::Demo(verb) => verb.run(context),
        }
    }
}

impl Up {
    fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let name = self.name.or_default();
        signals::cleanup_on_signal().map_err(Error::from)?;
        let lab = lab::Lab::up(self.size.spec(name.clone())?, |_| {})?;
        let outcome = context.show(&lab.nodes(), |nodes| {
            format!(
                "{}\n{}",
                describe::nodes(nodes),
                describe::what_to_try(&name, nodes)
            )
        })?;
        lab.leak();
        Ok(outcome)
    }
}

impl Name {
    fn given(&self) -> Option<&LabName> {
        self.plain.as_ref().or(self.flag.as_ref())
    }

    fn or_default(&self) -> LabName {
        self.given().cloned().unwrap_or_default()
    }
}

impl Size {
    fn spec(&self, name: LabName) -> Result<Spec, Error> {
        let node = NodePlan {
            pods: self.pods,
            ..NodePlan::default()
        };
        Ok(Spec {
            plan: Plan::new(name).with_nodes(self.nodes.into(), node),
            tunnel: match self.tunnel {
                Tunnel::Direct => datapath_user::Tunnel::Direct,
                Tunnel::Native => datapath_user::Tunnel::Native,
            },
            agent: lab::agent_program()?,
        })
    }
}
