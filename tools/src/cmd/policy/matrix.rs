//! `dpctl policy matrix`

use std::{
    env,
    fs::File,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use datapath_conformance::{
    policy::{
        case::{Case, read_probes},
        matrix::{Runner, summary, table},
    },
    signals,
    topology::LabName,
};

use super::{Context, Outcome};
use crate::{cmd::Form, error::Error};

const EXAMPLES: &str = "\
A case is a file of YAML documents: what it is called and what it expects (kind Case of
conformance/v1), hosts outside (ExternalHost), and what Kubernetes would be given: Namespace, Node,
Pod, NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy. Every endpoint listens on
every probed port, and real packets are sent from each to each.

  A  the payload arrived, and the answer came back
  D  no payload arrived
  s  not sent, and why is said below
  E  refused, or only half of it went through

Examples:
  dpctl policy matrix --case conformance/cases/knp-peer-or.yaml
  dpctl policy matrix --case web.yaml --json web.json --probes some.json
  dpctl policy matrix --case web.yaml --tunnel native

Exit code 1 if something is not as the case expects.";

/// Run a policy case in network namespaces, and show who reaches whom
///
/// The nodes of the case run the datapath. All of it is taken down in the end, also by Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Matrix {
    /// The case
    #[arg(long, value_name = "FILE")]
    case: PathBuf,

    /// Write the result for programs (netmatrix/1) to a file, and print only what is not as expected
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Send only the probes of a file (netprobes/1)
    #[arg(long, value_name = "FILE")]
    probes: Option<PathBuf>,

    /// How nodes reach each other's pods
    #[arg(long, value_enum, value_name = "WAY", default_value_t = Tunnel::Direct)]
    tunnel: Tunnel,

    /// What the names of its namespaces begin with [default: matrix-<number of this process>]
    #[arg(long, value_name = "LAB")]
    name: Option<LabName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tunnel {
    /// GENEVE, by the datapath itself
    Direct,
    /// By routes of the underlay, without a tunnel
    Native,
}

impl Matrix {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        context.target.refuse_for("a case of its own")?;
        let case = Case::read(&self.case).map_err(Error::from)?;
        let probes = self.probes.as_deref();
        let probes = probes
            .map(|file| read_probes(file, &case.name))
            .transpose()
            .map_err(Error::from)?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => format!("matrix-{}", process::id())
                .parse::<LabName>()
                .map_err(Error::from)?,
        };
        // Before the work, so that a path that cannot be written does not waste it.
        let file = self.json.as_ref().map(|path| {
            let opened = File::create(path);
            let opened = opened.with_context(|| format!("create {}", path.display()));
            opened.map(|file| (file, path))
        });
        let file = file.transpose()?;
        signals::cleanup_on_signal().map_err(Error::from)?;
        let tunnel = match self.tunnel {
            Tunnel::Direct => datapath_user::Tunnel::Direct,
            Tunnel::Native => datapath_user::Tunnel::Native,
        };
        let mut runner = Runner::new(name, tunnel);
        let matrix = runner.run(&case, probes.as_deref()).map_err(Error::from)?;
        drop(runner);
        let json = serde_json::to_string_pretty(&matrix)? + "\n";
        let has_file = file.is_some();
        if let Some((mut file, path)) = file {
            let written = file.write_all(json.as_bytes());
            written.with_context(|| format!("write {}", path.display()))?;
        }
        let text = match context.form {
            Form::Json => json,
            Form::Table if has_file => summary(&matrix, &case),
            Form::Table => table(&matrix, &case, colour()),
        };
        Ok(Outcome {
            text,
            failed: !matrix.mismatches(&case).is_empty(),
            ..Outcome::default()
        })
    }
}

/// Whether to print in colour: to a terminal, unless <https://no-color.org> is asked for.
fn colour() -> bool {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
