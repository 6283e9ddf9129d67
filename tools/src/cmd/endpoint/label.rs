//! `dpctl endpoint label`

use clap::Args;

use super::{
    Context, Outcome,
    pod::{Pod, change},
    rows,
};
use crate::{
    api::{Client, Failure, Kind},
    error::Error,
};

const EXAMPLES: &str = "\
What is not named stays as it is; --port takes the place of all ports. The endpoint gets the identity
of its new labels, rules for it are there first, and its flows are judged again. Without a change its
labels are printed.

Examples:
  dpctl endpoint label web-0
  dpctl endpoint label web-0 app=web tier=front
  dpctl endpoint label web-0 tier-                    # takes the label away
  dpctl endpoint label web-0 --namespace shop --name web-0 --namespace-label team=a";

/// Change the labels and names of a pod, or show them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Label {
    /// What the endpoint is called
    id: String,

    /// Labels to set, KEY=VALUE, or to take away, KEY-
    #[arg(value_name = "LABEL", value_parser = label)]
    labels: Vec<(String, Option<String>)>,

    #[command(flatten)]
    pod: Pod,
}

impl Label {
    pub(super) fn run(&self, context: &Context<'_>, client: &Client) -> anyhow::Result<Outcome> {
        let mut endpoints = client.endpoints()?.into_iter();
        let known = endpoints.find(|endpoint| endpoint.id == self.id);
        let known = known.ok_or_else(|| {
            let error = format!(
                "no endpoint {:?}: `dpctl endpoint list` shows those there are",
                self.id
            );
            Error::from(Failure::of(Kind::Missing, error))
        })?;
        let mut spec = known.spec();
        change(&mut spec.labels, &self.labels);
        self.pod.set(&mut spec);
        if self.labels.is_empty() && self.pod.is_empty() {
            return context.show(&known.identity_labels(), |labels| {
                crate::table::lines(labels.iter().map(|label| label.to_string()))
            });
        }
        let changed = client.set_endpoint_labels(&self.id, &spec)?;
        context.show(&changed, |changed| rows(std::slice::from_ref(changed)))
    }
}

fn label(text: &str) -> Result<(String, Option<String>), String> {
    let remedy = "write KEY=VALUE to set a label, as in app=web, or KEY- to take it away";
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => Err(remedy.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_or_taken_away() {
        let set = ("app".to_owned(), Some("web-".to_owned()));
        assert_eq!(label("app=web-").unwrap(), set);
        assert_eq!(label("app-").unwrap(), ("app".to_owned(), None));
        for bad in ["app", "-", "=web"] {
            assert!(label(bad).unwrap_err().contains("KEY=VALUE"), "{bad}");
        }
    }
}
