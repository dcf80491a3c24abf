package rendezvous

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/pion/stun/v4"
)

const (
	stunTestUser     = "s1"
	stunTestPassword = "secret"
)

var (
	stunTestAnswerer = stunAnswerer{credential: func(username string) (string, bool) {
		return stunTestPassword, username == stunTestUser
	}}
	stunTestSrc   = netip.MustParseAddrPort("192.0.2.1:32853")
	stunTestSrc6  = netip.MustParseAddrPort("[2001:db8::1]:32853")
	stunTestLocal = netip.MustParseAddrPort("198.51.100.1:3478")

	testTransaction = stun.NewTransactionIDSetter([stun.TransactionIDSize]byte([]byte("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c")))
	testUsername    = stun.NewUsername(stunTestUser)
	testIntegrity   = stun.NewShortTermIntegrity(stunTestPassword)
)

// rawAttribute is an attribute of any type and value.
func rawAttribute(kind stun.AttrType, value ...byte) stun.Setter {
	return stun.RawAttribute{Type: kind, Value: value}
}

func bindingRequest(setters ...stun.Setter) []byte {
	all := append([]stun.Setter{testTransaction, stun.BindingRequest}, setters...)
	return stun.MustBuild(all...).Raw
}

func handleSTUN(request []byte, src netip.AddrPort) stunVerdict {
	return stunTestAnswerer.handle(stunRequest{raw: request, src: src, local: stunTestLocal, places: stunOneAddress, at: stunEpoch})
}

func stunBytes(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

func TestSTUNGolden(t *testing.T) {
	t.Parallel()
	const header = " 2112a442 0102030405060708090a0b0c "
	tests := []struct {
		name          string
		src           netip.AddrPort
		request, want string
	}{
		{
			"plain", stunTestSrc,
			"0001 0000" + header,
			"0101 000c" + header + "0020 0008 0001 a147 e112a643",
		},
		{
			"plain, IPv6", stunTestSrc6,
			"0001 0000" + header,
			"0101 0018" + header + "0020 0014 0002 a147 0113a9fa 0102030405060708090a0b0d",
		},
		{
			"plain, with FINGERPRINT", stunTestSrc,
			hex.EncodeToString(bindingRequest(stun.Fingerprint)),
			"0101 0014" + header + "0020 0008 0001 a147 e112a643 8028 0004 5089d898",
		},
		{
			"two unknown attributes", stunTestSrc,
			"0001 0010" + header + "7ffe 0000 8ffe 0000 7fff 0001 aa000000",
			"0111 0010" + header + "0009 0004 00000414 000a 0004 7ffe7fff",
		},
		{
			"USERNAME alone", stunTestSrc,
			"0001 0008" + header + "0006 0002 73310000",
			"0111 0008" + header + "0009 0004 00000400",
		},
		{
			"wrong MESSAGE-INTEGRITY", stunTestSrc,
			"0001 0020" + header + "0006 0002 73310000 0008 0014" + strings.Repeat("00", 20),
			"0111 0008" + header + "0009 0004 00000401",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := handleSTUN(stunBytes(tt.request), tt.src)
			if !bytes.Equal(v.response, stunBytes(tt.want)) {
				t.Errorf("response %x\nwant     %x", v.response, stunBytes(tt.want))
			}
			if v.via != 0 || v.to != tt.src || v.observation != nil {
				t.Errorf("a stranger's request gave %+v", v)
			}
		})
	}
}

func TestSTUNAuthenticated(t *testing.T) {
	t.Parallel()
	mapped := &stun.XORMappedAddress{IP: stunTestSrc.Addr().AsSlice(), Port: int(stunTestSrc.Port())}
	origin := func(port int) stun.Setter {
		return &stun.ResponseOrigin{IP: stunTestLocal.Addr().AsSlice(), Port: port}
	}
	other := &stun.OtherAddress{IP: stunTestLocal.Addr().AsSlice(), Port: 3480}
	failure := func(code stun.ErrorCode) stun.Setter { return stun.ErrorCodeAttribute{Code: code} }
	unknown := func(kind stun.AttrType) []stun.Setter {
		return []stun.Setter{failure(stun.CodeUnknownAttribute), stun.UnknownAttributes{kind}}
	}
	badRequest := []stun.Setter{failure(stun.CodeBadRequest)}
	change := func(flags byte) stun.Setter { return rawAttribute(stun.AttrChangeRequest, 0, 0, 0, flags) }
	to := func(port ...byte) stun.Setter { return rawAttribute(stun.AttrResponsePort, port...) }
	elsewhere := netip.AddrPortFrom(stunTestSrc.Addr(), 0x0102)

	asked := []stun.Setter{mapped, origin(3478), other}
	changed := []stun.Setter{mapped, origin(3480), other}
	tests := []struct {
		name     string
		request  []stun.Setter // before MESSAGE-INTEGRITY
		outcome  stunOutcome
		kind     stun.MessageType
		response []stun.Setter // before MESSAGE-INTEGRITY
		via      int
		to       netip.AddrPort
	}{
		{"address only", nil, stunAuthenticated, stun.BindingSuccess, asked, 0, stunTestSrc},
		{"optional attribute", []stun.Setter{stun.NewSoftware("x")}, stunAuthenticated, stun.BindingSuccess, asked, 0, stunTestSrc},
		{"change nothing", []stun.Setter{change(0)}, stunAuthenticated, stun.BindingSuccess, asked, 0, stunTestSrc},
		{"change port", []stun.Setter{change(2)}, stunAuthenticated, stun.BindingSuccess, changed, 2, stunTestSrc},
		{"change IP", []stun.Setter{change(4)}, stunRefused, stun.BindingError, unknown(stun.AttrChangeRequest), 0, stunTestSrc},
		{"change both", []stun.Setter{change(6)}, stunRefused, stun.BindingError, unknown(stun.AttrChangeRequest), 0, stunTestSrc},
		{"malformed CHANGE-REQUEST", []stun.Setter{rawAttribute(stun.AttrChangeRequest, 2)}, stunRefused, stun.BindingError, badRequest, 0, stunTestSrc},
		{"RESPONSE-PORT", []stun.Setter{to(1, 2, 0, 0)}, stunAuthenticated, stun.BindingSuccess, asked, 0, elsewhere},
		{"RESPONSE-PORT and change port", []stun.Setter{to(1, 2), change(2)}, stunAuthenticated, stun.BindingSuccess, changed, 2, elsewhere},
		{"RESPONSE-PORT 0", []stun.Setter{to(0, 0, 0, 0)}, stunRefused, stun.BindingError, badRequest, 0, stunTestSrc},
		{"RESPONSE-PORT and change IP", []stun.Setter{to(1, 2, 0, 0), change(4)}, stunRefused, stun.BindingError, unknown(stun.AttrChangeRequest), 0, stunTestSrc},
		{"PADDING", []stun.Setter{to(1, 2, 0, 0), rawAttribute(stun.AttrPadding, 0, 0, 0, 0)}, stunRefused, stun.BindingError, unknown(stun.AttrPadding), 0, stunTestSrc},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			request := append([]stun.Setter{testUsername}, tt.request...)
			request = append(request, testIntegrity, stun.Fingerprint)
			want := append([]stun.Setter{testTransaction, tt.kind}, tt.response...)
			want = append(want, testIntegrity, stun.Fingerprint)

			v := handleSTUN(bindingRequest(request...), stunTestSrc)
			if v.outcome != tt.outcome || v.via != tt.via || v.to != tt.to {
				t.Errorf("outcome %d, from socket %d to %s; want %d, %d, %s", v.outcome, v.via, v.to, tt.outcome, tt.via, tt.to)
			}
			if w := stun.MustBuild(want...).Raw; !bytes.Equal(v.response, w) {
				t.Errorf("response %x\nwant     %x", v.response, w)
			}
			var observed *Observation
			if tt.outcome == stunAuthenticated {
				observed = &Observation{Username: stunTestUser, Addr: stunTestSrc, Local: stunTestLocal, At: stunEpoch, Means: "stun:3478"}
			}
			if !reflect.DeepEqual(v.observation, observed) {
				t.Errorf("observation %+v, want %+v", v.observation, observed)
			}
		})
	}
}

// What stands behind MESSAGE-INTEGRITY is not covered by it.
func TestSTUNIgnoresAttributesBehindIntegrity(t *testing.T) {
	t.Parallel()
	v := handleSTUN(bindingRequest(testUsername, testIntegrity,
		rawAttribute(stun.AttrChangeRequest, 0, 0, 0, 2), rawAttribute(stun.AttrResponsePort, 1, 2, 0, 0)), stunTestSrc)
	if v.outcome != stunAuthenticated || v.via != 0 || v.to != stunTestSrc {
		t.Errorf("verdict %+v: attributes behind MESSAGE-INTEGRITY were honoured", v)
	}
}

func TestSTUNRejects(t *testing.T) {
	t.Parallel()
	plain := bindingRequest()
	edit := func(b []byte, offset int, to byte) []byte {
		b = bytes.Clone(b)
		b[offset] = to
		return b
	}
	indication := stun.MustBuild(testTransaction, stun.NewType(stun.MethodBinding, stun.ClassIndication)).Raw
	allocate := stun.MustBuild(testTransaction, stun.NewType(stun.MethodAllocate, stun.ClassRequest)).Raw
	response := stun.MustBuild(testTransaction, stun.BindingSuccess).Raw
	authentic := bindingRequest(testUsername, testIntegrity)

	tests := []struct {
		name    string
		request []byte
		src     netip.AddrPort
		outcome stunOutcome
		code    stun.ErrorCode // 0: dropped
	}{
		{"nothing", nil, stunTestSrc, stunMalformed, 0},
		{"garbage", []byte("GET / HTTP/1.1\r\n\r\n!!"), stunTestSrc, stunMalformed, 0},
		{"header cut", plain[:19], stunTestSrc, stunMalformed, 0},
		{"no magic cookie", edit(plain, 4, 0), stunTestSrc, stunMalformed, 0},
		{"top bits set", edit(plain, 0, 0x80), stunTestSrc, stunMalformed, 0},
		{"longer than it says", append(bytes.Clone(plain), 0, 0, 0, 0), stunTestSrc, stunMalformed, 0},
		{"shorter than it says", edit(plain, 3, 4), stunTestSrc, stunMalformed, 0},
		{"attribute cut", edit(bindingRequest(testUsername), 23, 200), stunTestSrc, stunMalformed, 0},
		{"wrong FINGERPRINT", edit(bindingRequest(stun.Fingerprint), 27, 0), stunTestSrc, stunMalformed, 0},
		{"indication", indication, stunTestSrc, stunMalformed, 0},
		{"other method", allocate, stunTestSrc, stunMalformed, 0},
		{"response", response, stunTestSrc, stunMalformed, 0},
		{"port 0", plain, netip.MustParseAddrPort("192.0.2.1:0"), stunMalformed, 0},
		{"unknown user", bindingRequest(stun.NewUsername("other"), testIntegrity), stunTestSrc, stunUnauthorised, 401},
		{"wrong password", bindingRequest(testUsername, stun.NewShortTermIntegrity("guess")), stunTestSrc, stunUnauthorised, 401},
		{"damaged after signing", edit(authentic, 10, 0xff), stunTestSrc, stunUnauthorised, 401},
		{"integrity of no user", bindingRequest(testIntegrity), stunTestSrc, stunRefused, 400},
		{"SHA-256 integrity", bindingRequest(testUsername, rawAttribute(stun.AttrMessageIntegritySHA256, make([]byte, 32)...)), stunTestSrc, stunRefused, 420},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := handleSTUN(tt.request, tt.src)
			if v.outcome != tt.outcome || v.observation != nil || (v.response == nil) != (tt.code == 0) {
				t.Fatalf("verdict %+v, want outcome %d", v, tt.outcome)
			}
			if tt.code == 0 {
				return
			}
			m := new(stun.Message)
			var code stun.ErrorCodeAttribute
			if err := stun.Decode(v.response, m); err != nil || code.GetFrom(m) != nil {
				t.Fatalf("response %x: %v", v.response, err)
			}
			if code.Code != tt.code || m.Contains(stun.AttrMessageIntegrity) {
				t.Errorf("response %s, want %d without MESSAGE-INTEGRITY", m, tt.code)
			}
		})
	}
}

func TestSTUNWithoutCredentials(t *testing.T) {
	t.Parallel()
	request := stunRequest{raw: bindingRequest(testUsername, stun.NewShortTermIntegrity("")), src: stunTestSrc, local: stunTestLocal}
	for name, a := range map[string]stunAnswerer{
		"no function":    {},
		"empty password": {credential: func(string) (string, bool) { return "", true }},
	} {
		if v := a.handle(request); v.outcome != stunUnauthorised {
			t.Errorf("%s: verdict %+v, want 401", name, v)
		}
	}
}

func FuzzSTUNHandle(f *testing.F) {
	f.Add(bindingRequest(), false)
	f.Add(bindingRequest(stun.Fingerprint), true)
	f.Add(bindingRequest(rawAttribute(stun.AttrChangeRequest, 0, 0, 0, 6)), true)
	f.Add(bindingRequest(testUsername, testIntegrity), false)
	f.Add(bindingRequest(testUsername, rawAttribute(stun.AttrChangeRequest, 0, 0, 0, 2), testIntegrity, stun.Fingerprint), true)
	f.Add(bindingRequest(rawAttribute(stun.AttrChangeRequest, 0, 0, 0, 2), stun.NewSoftware("netcheck")), false)
	f.Add(bindingRequest(rawAttribute(stun.AttrResponsePort, 1, 2, 0, 0)), false)
	f.Add(bindingRequest(testUsername, rawAttribute(stun.AttrResponsePort, 1, 2), testIntegrity), true)
	f.Add(bindingRequest(rawAttribute(0x7fff), rawAttribute(0x7ffe, 1), rawAttribute(0x8fff, 1, 2, 3, 4, 5)), false)
	f.Fuzz(func(t *testing.T, request []byte, v6 bool) {
		src := stunTestSrc
		if v6 {
			src = stunTestSrc6
		}
		before := bytes.Clone(request)
		v := handleSTUN(request, src)
		if !bytes.Equal(request, before) {
			t.Fatal("handle changed the request")
		}
		if (v.observation != nil) != (v.outcome == stunAuthenticated) {
			t.Fatalf("outcome %d with observation %+v", v.outcome, v.observation)
		}
		if v.response == nil {
			if v.outcome != stunMalformed {
				t.Fatalf("outcome %d without a response", v.outcome)
			}
			return
		}
		if v.to.Addr() != src.Addr() || v.to != src && v.observation == nil || v.via&^stunAlternate != 0 {
			t.Fatalf("from socket %d to %s, asked by %s, observation %+v", v.via, v.to, src, v.observation)
		}
		m := new(stun.Message)
		if err := stun.Decode(v.response, m); err != nil {
			t.Fatalf("response %x: %v", v.response, err)
		}
		if !m.Contains(stun.AttrMessageIntegrity) && len(v.response) > len(request)+stunPlainGrowth {
			t.Fatalf("%d bytes answered with %d", len(request), len(v.response))
		}
	})
}
