package rewrite

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The library asks for the byte order at its first use and keeps it in an
// unguarded variable: ask before there are goroutines.
var _ = nl.NativeEndian()

// conntrack deletes entries of the kernel's connection tracking. It is not
// safe for concurrent use.
//
// It names the entry by a tuple, which the kernel looks up in its hash table;
// to list them all first would take seconds on a busy node.
type conntrack struct {
	socket *nl.SocketHandle
}

func openConntrack() (*conntrack, error) {
	const thisNamespace = -1
	s, err := nl.GetNetlinkSocketAt(thisNamespace, thisNamespace, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return &conntrack{socket: &nl.SocketHandle{Socket: s}}, nil
}

func (c *conntrack) close() { c.socket.Close() }

// forget deletes every entry that a rewrite's packets could match, or that
// could occupy its port.
func (c *conntrack) forget(rules []Rule) error {
	for _, r := range rules {
		hit := netip.AddrPortFrom(r.Flow.Local.Addr(), r.Port)
		for _, local := range []netip.AddrPort{r.Flow.Local, hit} {
			if err := errors.Join(c.delete(local, r.Flow.Peer), c.delete(r.Flow.Peer, local)); err != nil {
				return err
			}
		}
	}
	return nil
}

// delete deletes the entry of UDP from src to dst, in its original or in its
// reply direction. It is no error if there is none.
func (c *conntrack) delete(src, dst netip.AddrPort) error {
	req := &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{
			Len:   unix.SizeofNlMsghdr,
			Type:  unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_DELETE,
			Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK,
		},
		Sockets: map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: c.socket},
	}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(tuple(src, dst))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete conntrack entry %s to %s: %w", src, dst, err)
	}
	return nil
}

// tuple is the attribute CTA_TUPLE_ORIG (linux/netfilter/nfnetlink_conntrack.h).
func tuple(src, dst netip.AddrPort) *nl.RtAttr {
	t := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	ip := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(nl.CTA_IP_V4_SRC, src.Addr().AsSlice())
	ip.AddRtAttr(nl.CTA_IP_V4_DST, dst.Addr().AsSlice())
	proto := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, bigEndian(src.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, bigEndian(dst.Port()))
	return t
}

const (
	// membarrierGlobal is MEMBARRIER_CMD_GLOBAL (linux/membarrier.h).
	membarrierGlobal = 1
	// assumedGrace stands in for a grace period that the kernel does not let us
	// wait for: far longer than a packet takes through netfilter.
	assumedGrace = 20 * time.Millisecond
)

// awaitGracePeriod returns when no packet is under way any more that netfilter
// has judged by a ruleset from before the call. Netfilter holds RCU's read lock
// while it judges; membarrier(2) waits for everybody who holds it, where the
// system permits the call.
func awaitGracePeriod() {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(assumedGrace)
	}
}
