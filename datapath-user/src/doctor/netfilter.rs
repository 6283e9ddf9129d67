//! Whether there is nftables, for an operator's firewall and host ports.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::Finding;

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETGEN` (`include/uapi/linux/netfilter`).
const GET_GENERATION: u16 = 10 << 8 | 16;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;

/// Asks nftables for the generation of its rules.
pub(super) fn finding() -> Finding {
    let check = "nf_tables";
    match ask() {
        Ok(()) => Finding::ok(
            check,
            "there, for a firewall and host ports beside the datapath",
        ),
        Err(Errno::EPERM) => Finding::warn(
            check,
            "may not be asked",
            "run as root, or give the process CAP_NET_ADMIN",
        ),
        Err(errno) => Finding::ok(
            check,
            format!("not in this kernel ({errno}); the datapath does without"),
        ),
    }
}

fn ask() -> Result<(), Errno> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    // struct nlmsghdr: length, type, flags, sequence, port; struct nfgenmsg: family, version,
    // resource.
    let mut request = Vec::new();
    request.extend(20_u32.to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 256];
    // The kernel has answered when `send` returns.
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    refusal(answer.get(..length).unwrap_or_default())
}

/// What an answer refuses: it is `NLMSG_ERROR` with a negative error number behind the header.
fn refusal(answer: &[u8]) -> Result<(), Errno> {
    let (Some(&[a, b]), Some(&[c, d, e, f])) = (
        answer.get(4..6).and_then(|bytes| bytes.first_chunk()),
        answer.get(16..20).and_then(|bytes| bytes.first_chunk()),
    ) else {
        return Err(Errno::EBADMSG);
    };
    if u16::from_ne_bytes([a, b]) == ERROR {
        return Err(Errno::from_raw(-i32::from_ne_bytes([c, d, e, f])));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read() {
        let mut answer = [0_u8; 36];
        answer[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-95_i32).to_ne_bytes());
        assert_eq!(refusal(&answer), Err(Errno::EOPNOTSUPP));
        answer[4..6].copy_from_slice(&(10_u16 << 8 | 15).to_ne_bytes());
        assert_eq!(refusal(&answer), Ok(()));
        assert_eq!(refusal(&answer[..10]), Err(Errno::EBADMSG));
    }
}
