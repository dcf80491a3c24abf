package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/bodkin-net/bodkin/rendezvous"
)

// config is the configuration that init writes: every key, with what it is for.
func (s *setup) config() string {
	d := rendezvous.DefaultConfig()
	ca, caKey := s.path("ca.crt"), s.path("ca.key")
	if s.ca != "" {
		ca, caKey = s.ca, ""
	}
	var connectors []string
	if s.cluster != "" {
		connectors = []string{s.cluster + ".connector"}
	}
	return strings.NewReplacer(
		"$LISTEN", quoted(d.Listen),
		"$CERTIFICATE", quoted(s.path("rendezvous.crt")), "$KEY", quoted(s.path("rendezvous.key")),
		"$CAKEY", quoted(caKey), "$CA", quoted(ca),
		"$LIFETIME", d.CertificateLifetime,
		"$STUNALTERNATES", strings.ReplaceAll(fmt.Sprint(d.STUNAlternates), " ", ", "), "$STUN", quotedList(d.STUN),
		"$PUBLIC", quotedList(bothFamilies(s.hosts)),
		"$STATUS", quoted(s.status), "$SOCKET", quoted(d.AdminSocket),
		"$STORE", quoted(filepath.Join(s.stateDir, "rendezvous.db")),
		"$CONNECTORS", quotedList(connectors),
	).Replace(configTemplate)
}

// bothFamilies are the addresses among hosts, if there are some of IPv4 and of
// IPv6: an agent that came over one asks at the other for its address there.
func bothFamilies(hosts []string) (out []string) {
	four, six := false, false
	for _, host := range hosts {
		if a, err := netip.ParseAddr(host); err == nil {
			four, six = four || a.Is4(), six || a.Is6()
			out = append(out, a.String())
		}
	}
	if !four || !six || len(out) > 4 {
		return nil
	}
	return out
}

// quoted is a YAML string: Go's quoting of what is no path in a strange alphabet
// is JSON's, and that is YAML.
func quoted(s string) string { return fmt.Sprintf("%q", s) }

func quotedList(list []string) string {
	words := make([]string, 0, len(list))
	for _, s := range list {
		words = append(words, quoted(s))
	}
	return "[" + strings.Join(words, ", ") + "]"
}

const configTemplate = `# bodkin rendezvous, made by "bodkin rendezvous init". Every key is here; a line
# that is left out means its default. After a change: systemctl reload
# bodkin-rendezvous, whose log says what has taken effect.

# Where agents connect (TCP). Must be open from outside.
listen: $LISTEN

# The rendezvous' certificate and key. The certificate holds what edges dial:
# "bodkin rendezvous init --renew --host ..." issues it for other hosts.
certificate: $CERTIFICATE
key: $KEY

# Who has a certificate of this CA may be a node. With its key nodes join by
# token and renew by themselves; empty, certificates come from elsewhere.
ca: $CA
caKey: $CAKEY

# auto: a token, or a certificate of the CA, is enough. manual: each node waits
# for "bodkin node approve".
approval: auto

# How long a node's certificate is good. Nodes renew it when two thirds are over.
certificateLifetime: $LIFETIME

# STUN (UDP), by which nodes learn what their NAT does. All four ports must be
# open from outside, unchanged by any port mapping.
stun: $STUN
stunAlternates: $STUNALTERNATES

# This machine's addresses as seen from outside, if it has IPv4 and IPv6.
publicAddresses: $PUBLIC

# Status page, API and metrics. On an address other than loopback it speaks TLS
# and asks for a credential: bodkin access create.
status: $STATUS

# The commands on this machine connect here: root and the socket's group may.
adminSocket: $SOCKET

# What must not be forgotten. Its directory must exist.
store: $STORE

# A directory of Community files that is watched, instead of "bodkin community
# apply". Empty is none.
communitiesDir: ""

# Who may be a Connector, to which every edge of its cluster keeps a tunnel.
# Empty is CLUSTER.connector in each cluster.
connectors: $CONNECTORS

# Members of a community without a direct tunnel reach each other through their
# connector. The ranges are what that way leads to; empty follows the members.
relay:
  enabled: true
  ranges: []

# debug, info, warn or error.
logLevel: info
`
