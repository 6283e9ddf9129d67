//! How the host's stack is set, in the calling thread's network namespace.

use super::Finding;
use super::kernel::setting;

pub(super) fn findings(uplinks: &[String]) -> Vec<Finding> {
    let mut findings = vec![
        forwarding("IPv4", "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        forwarding(
            "IPv6",
            "net/ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding",
        ),
        ipv6(),
    ];
    let names = ["all"]
        .into_iter()
        .chain(uplinks.iter().map(String::as_str));
    findings.push(reverse_path(&names.collect::<Vec<_>>()));
    findings
}

fn forwarding(family: &str, key: &str, name: &str) -> Finding {
    let check = format!("{family} forwarding");
    match setting(key).as_deref() {
        Some("0") => Finding::warn(
            check,
            "off: pods reach each other and outside, but host ports (DNAT) do not reach pods",
            format!("sysctl -w {name}=1"),
        ),
        Some(_) => Finding::ok(check, "on, for host ports that lead to pods"),
        None => Finding::ok(check, format!("{family} is not there")),
    }
}

fn ipv6() -> Finding {
    let check = "IPv6 here";
    match setting("net/ipv6/conf/all/disable_ipv6").as_deref() {
        Some("0") => Finding::ok(check, "on in this network namespace"),
        Some(_) => Finding::warn(
            check,
            "off in this network namespace",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        ),
        None => Finding::warn(
            check,
            "not in this kernel",
            "use a kernel built with CONFIG_IPV6, started without ipv6.disable=1",
        ),
    }
}

/// Strict reverse path filters drop what comes in by another uplink than answers would leave by.
/// The larger of an interface's value and that of `all` counts
/// (Documentation/networking/ip-sysctl.rst).
fn reverse_path(names: &[&str]) -> Finding {
    let check = "reverse path filter";
    let strict: Vec<_> = names
        .iter()
        .filter(|name| setting(&format!("net/ipv4/conf/{name}/rp_filter")).as_deref() == Some("1"))
        .copied()
        .collect();
    if strict.is_empty() {
        return Finding::ok(check, "off or loose");
    }
    let found = format!("strict on {}", strict.join(", "));
    if names.len() > 2 {
        return Finding::warn(
            check,
            format!("{found}: what comes in by one uplink and is answered by another is dropped"),
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        );
    }
    Finding::ok(check, format!("{found}: good with one uplink"))
}
