//! Policy: documents, identities, and what they come to.

use super::Datapath;
use crate::endpoint::{EndpointSpec, EndpointView};
use crate::error::Error;
use crate::node::Node;
use crate::policy::{
    Document, DocumentId, ExplainEnd, ExplainQuery, Explanation, IdentityView, PolicyReport,
    PolicyView, Refusal,
};

impl Datapath {
    /// Puts these documents in force, and no others. Endpoints whose rules are other ones by it are
    /// switched to them, each at once, and no others are touched.
    ///
    /// Of a document that was refused the last good one stays in force. Where there is none, those
    /// whom it concerns ([`Refusal::concerns`]) are closed, until a document of its name is in force,
    /// or it is not among the refused ones any more.
    ///
    /// After a restart what an earlier process enforced goes on until this is called, once, with all
    /// documents; with none, if there are none.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`]; then those are in force that were. [`Error::Map`].
    pub fn set_policies(
        &self,
        documents: Vec<Document>,
        refused: Vec<Refusal>,
    ) -> Result<PolicyReport, Error> {
        self.with(|node| node.set_policies(&self.config, documents, refused))
    }

    /// Puts these documents in force, in the place of those of the same names.
    ///
    /// # Errors
    ///
    /// [`Error::PoliciesUnknown`] after a restart, before [`Datapath::set_policies`]; as that.
    pub fn upsert_policies(&self, documents: Vec<Document>) -> Result<PolicyReport, Error> {
        self.with(|node| node.upsert_policies(&self.config, documents))
    }

    /// Takes these documents out of force. Those that there are not are passed over.
    ///
    /// # Errors
    ///
    /// As [`Datapath::upsert_policies`].
    pub fn remove_policies(&self, ids: &[DocumentId]) -> Result<PolicyReport, Error> {
        self.with(|node| node.remove_policies(&self.config, ids))
    }

    /// The documents in force, and behind them the refused ones.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyView> {
        self.peek(Node::policy_views)
    }

    /// The endpoints that a document in force is for, by id.
    #[must_use]
    pub fn policy_endpoints(&self, id: &DocumentId) -> Vec<String> {
        self.peek(|node| node.policy_endpoints(id))
    }

    /// Whether a flow would be let through, by which rule, or which one is missing on which side.
    /// Either end is judged as its own node would with the documents that are in force here.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`] for an identity that nobody has.
    pub fn explain(&self, query: &ExplainQuery) -> Result<Explanation, Error> {
        self.with(|node| node.explain(query))
    }

    /// Who somebody means. In this order:
    ///
    /// | as it is written | who that is |
    /// |---|---|
    /// | `10.244.1.5`, `2001:db8::7` | the pod or node that has the address, or what is outside under it |
    /// | `reserved:host`, `reserved:world` | a reserved identity; `reserved:world` is that of IPv4 |
    /// | `4711` | the identity of that number |
    /// | `app=web,k8s:tier=front` | a pod with exactly these labels, whether there is one or not |
    /// | `shop/web-0` | a pod by namespace and name, of this node or another |
    /// | `web-0`, `n2`, `host`, `world` | an endpoint by its id, a peer by its name, this node, the world |
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`], [`Error::Invalid`] for labels that cannot be read.
    pub fn find_end(&self, text: &str) -> Result<ExplainEnd, Error> {
        self.with(|node| node.find_end(&self.config, text))
    }

    /// Gives an endpoint other labels, names and ports, and the identity that goes with them. Of
    /// `spec` nothing else is looked at: not where the endpoint is, nor its addresses.
    ///
    /// Rules are there before anything leads to the new identity; flows of the endpoint are judged
    /// again then.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Invalid`], [`Error::IdentityCollision`], [`Error::PolicyFull`]; then
    /// nothing is changed. [`Error::Map`].
    pub fn set_endpoint_labels(
        &self,
        id: &str,
        spec: &EndpointSpec,
    ) -> Result<EndpointView, Error> {
        spec.validate_labels()?;
        self.with(|node| node.set_endpoint_labels(&self.config, id, spec))
    }

    /// Has what would be denied let through and told, or not any more: of one endpoint, or of all
    /// of the node. [`PolicyConfig::audit`](crate::PolicyConfig::audit) is what it begins with.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Map`].
    pub fn set_audit(&self, endpoint: Option<&str>, on: bool) -> Result<(), Error> {
        self.with(|node| node.set_audit(&self.config, endpoint, on))
    }

    /// The identities that pods and prefixes have, by number.
    #[must_use]
    pub fn identities(&self) -> Vec<IdentityView> {
        self.peek(|node| node.policy.views_of_identities())
    }
}
