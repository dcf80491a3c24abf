package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/agent"
)

func TestPing(t *testing.T) {
	n := 0
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.RequestURI() != "/v1/ping?peer=beijing.edge2&timeout=2s" {
			t.Errorf("asked for %s %s", r.Method, r.URL.RequestURI())
		}
		answers := []string{
			`{"peer": "beijing.edge2", "from": "10.233.66.1", "to": "10.233.67.1", "answered": true, "rttMs": 12.5, "state": "relayed", "relay": "beijing.connector"}`,
			`{"peer": "beijing.edge2", "from": "10.233.66.1", "to": "10.233.67.1", "answered": false, "state": "relayed", "relay": "beijing.connector"}`,
			`{"peer": "beijing.edge2", "from": "10.233.66.1", "to": "10.233.67.1", "answered": true, "rttMs": 2.5, "state": "direct",
				"path": {"kind": "srflx", "local": "192.168.1.2:4500", "remote": "203.0.113.7:4500"}}`,
		}
		fmt.Fprint(w, answers[n%len(answers)])
		n++
	})
	const want = `1  answer from 10.233.67.1 in 12.500 ms, relayed through beijing.connector
2  no answer from 10.233.67.1 within 2s, relayed through beijing.connector
3  answer from 10.233.67.1 in 2.500 ms, direct srflx 203.0.113.7[4500]

beijing.edge2: 3 sent, 2 answered, 33 % lost; min/avg/max 2.500/7.500/12.500 ms
`
	out, err := run(t, "", "ping", "--socket", socket, "beijing.edge2", "-c", "3", "-i", "1ms")
	if err != nil || out != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
	out, err = run(t, "", "ping", "--socket", socket, "beijing.edge2", "-c", "3", "-i", "1ms", "-o", "json")
	var s pingSummary
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.Answered != 2 || s.AvgMs != 7.5 || len(s.Pings) != 3 {
		t.Errorf("%v\n%s", err, out)
	}
	n = 1
	if _, err = run(t, "", "ping", "--socket", socket, "beijing.edge2", "-c", "1"); exitCode(err) != exitFailed {
		t.Errorf("no answer at all: %v, exit code %d", err, exitCode(err))
	}
}

// articleSA is the listing of FabEdge's documentation, as the agent gives it.
const articleSA = `[{"connection": "beijing.edge2", "id": 4, "version": "2", "state": "ESTABLISHED", "initiator": true,
 "localSPI": "da14230995406a58", "remoteSPI": "df83821754f9c263", "local": "10.22.46.30:4500", "remote": "10.22.46.28:4500",
 "localID": "C=CN, O=fabedge.io, CN=beijing.edge1", "remoteID": "C=CN, O=fabedge.io, CN=beijing.edge2", "localNAT": false, "remoteNAT": false,
 "proposal": {"encryption": "AES_CBC", "encryptionBits": "128", "integrity": "HMAC_SHA2_256_128", "prf": "PRF_HMAC_SHA2_256", "keyExchange": "CURVE_25519"},
 "establishedSeconds": 62, "rekeySeconds": 12926,
 "children": [{"name": "beijing.edge2-p2p", "id": 4, "reqID": 4, "state": "INSTALLED", "mode": "TUNNEL", "protocol": "ESP", "udp": false,
  "proposal": {"encryption": "AES_GCM_16", "encryptionBits": "128"}, "installedSeconds": 62, "rekeySeconds": 3245, "expireSeconds": 3898,
  "in": {"spi": "cfeeafca", "bytes": 0, "packets": 0}, "out": {"spi": "c8c1f7aa", "bytes": 0, "packets": 0},
  "localTS": ["10.233.66.0/24"], "remoteTS": ["10.233.67.0/24"]}]}]`

const articleListing = `beijing.edge2: #4, ESTABLISHED, IKEv2, da14230995406a58_i* df83821754f9c263_r
  local  'C=CN, O=fabedge.io, CN=beijing.edge1' @ 10.22.46.30[4500]
  remote 'C=CN, O=fabedge.io, CN=beijing.edge2' @ 10.22.46.28[4500]
  AES_CBC-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519
  established 62s ago, rekeying in 12926s
  beijing.edge2-p2p: #4, reqid 4, INSTALLED, TUNNEL, ESP:AES_GCM_16-128
    installed 62s ago, rekeying in 3245s, expires in 3898s
    in  cfeeafca,      0 bytes,     0 packets
    out c8c1f7aa,      0 bytes,     0 packets
    local  10.233.66.0/24
    remote 10.233.67.0/24
`

// What another node's agent says has the terminal do nothing.
func TestSAsOfAHostileNode(t *testing.T) {
	var out strings.Builder
	p := &printer{out: &out}
	printSAs(p, "beijing.edge1", []agent.SA{{Connection: "x\x1b[2J", LocalID: "\u009b2J"}})
	if err := p.flush(); err != nil || strings.ContainsAny(out.String(), "\x1b\u009b") || !strings.Contains(out.String(), "x [2J: #0") {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestSAs(t *testing.T) {
	var asked string
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.Path
		fmt.Fprint(w, articleSA)
	})
	out, err := run(t, "", "sas", "--socket", socket)
	if err != nil || out != articleListing || asked != "/v1/sas" {
		t.Errorf("%v, asked %s:\n%s\nwant\n%s", err, asked, out, articleListing)
	}
	out, err = run(t, "", "sas", "--socket", socket, "--node", "beijing.edge1")
	if err != nil || asked != "/api/v1/nodes/beijing.edge1/sas" || !strings.HasSuffix(out, articleListing) || !strings.HasPrefix(out, "=====") {
		t.Errorf("%v, asked %s:\n%s", err, asked, out)
	}
	out, err = run(t, "", "sas", "--socket", socket, "-o", "json")
	var list []agent.SA
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) != 1 || list[0].Children[0].In.SPI != "cfeeafca" {
		t.Errorf("%v\n%s", err, out)
	}
}
