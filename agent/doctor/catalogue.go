package doctor

// check is one thing that can be wrong.
type check struct {
	id    ID
	title string
	about string
	needs []source
	judge func(*Facts) Finding
}

// checks are in the order in which they are printed: what others rest on first.
var checks = []check{
	{"config", "agent's configuration", "agent.yaml can be read and says what the agent needs", nil, judgeConfig},
	{"certificate", "certificate, key and CA", "the three files fit together, are valid now and nobody else can read the key; the rendezvous has not revoked it", []source{fromAgent}, judgeCertificate},
	{"clock", "clock", "this machine's clock against the certificate's validity and the rendezvous' clock", []source{fromTCP}, judgeClock},
	{"capabilities", "raw sockets", "CAP_NET_RAW and CAP_NET_ADMIN, here and of the running agent", []source{fromAgent, fromRaw}, judgeCapabilities},
	{"vici", "charon over VICI", "charon answers on its VICI socket, and is new enough", []source{fromCharon}, judgeVICI},
	{"plugins", "charon's plugins", "plugins for AES-GCM, x25519, the certificate's key and ESP", []source{fromCharon}, judgePlugins},
	{"ike-port", "charon's UDP ports", "who holds UDP 4500 and 500", []source{fromPorts, fromCharon}, judgePorts},
	{"esp", "ESP in kernel or user space", "somebody does ESP, and the kernel does not answer checks to the IKE port with ICMP port unreachable", []source{fromPorts, fromCharon, fromICMP}, judgeESP},
	{"socket-mark", "socket mark with libipsec", "with ESP in user space, charon's and the agent's packets pass by the routes into the tunnels", []source{fromCharon, fromKernel, fromICMP}, judgeMark},
	{"competitors", "other managers of charon", "other IKE daemons, and connections in charon that Bodkin did not load and that meet its own", []source{fromCharon, fromPorts, fromAgent, fromState}, judgeCompetitors},
	{"host-firewall", "host firewall, IKE port", "nftables rules of this machine that drop or rewrite packets of the IKE port", []source{fromNetfilter, fromKernel}, judgeFirewall},
	{"ipsec-capture", "IPsec policies over own traffic", "XFRM policies or routes into a tunnel that catch what this node sends to the rendezvous", []source{fromKernel}, judgeCapture},
	{"table-220", "charon's routing table", "the rule that leads to charon's routes, table 220", []source{fromCharon, fromKernel}, judgeTable},
	{"rp-filter", "reverse path filter", "rp_filter against routes that lead out another way than packets come in", []source{fromKernel, fromCharon}, judgeRPFilter},
	{"forwarding", "IP forwarding", "ip_forward, for pods behind this node and for a connector that relays", []source{fromKernel}, judgeForwarding},
	{"subnets", "overlapping subnets", "own and peers' subnets against each other and against this machine's networks", []source{fromKernel, fromCharon, fromState}, judgeSubnets},
	{"tunnel-firewall", "host firewall, tunnels", "rules that drop or masquerade what goes between own and peers' subnets", []source{fromNetfilter, fromKernel, fromCharon, fromState}, judgeTunnelFirewall},
	{"rendezvous-tcp", "rendezvous over TCP", "name, connection, TLS and HTTP of the rendezvous", []source{fromTCP}, judgeTCP},
	{"rendezvous-udp", "rendezvous over UDP", "STUN answers to the IKE port and to another port", []source{fromUDP, fromAgent}, judgeUDP},
	{"mtu", "MTU of the path", "the largest packet that gets to the rendezvous, against what ESP in UDP adds", []source{fromMTU, fromKernel, fromCharon}, judgeMTU},
	{"port-rewrite", "port rewriting", "nftables NAT and conntrack, for pairs behind symmetric NATs", []source{fromRewrite}, judgeRewrite},
	{"conntrack", "connection tracking", "how full the conntrack table is", []source{fromKernel}, judgeConntrack},
	{"state", "state directory", "the agent's stateDir takes writes and has room", []source{fromState, fromAgent}, judgeState},
	{"agent", "agent", "the agent runs, answers, and is connected", []source{fromAgent}, judgeAgent},
}
