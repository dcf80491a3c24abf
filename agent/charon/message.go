package charon

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"net/netip"
	"strconv"
	"time"

	"github.com/strongswan/govici/vici"
)

// section is a VICI message as data: ordered keys whose values are strings,
// string lists or further sections.
type section []entry

type entry struct {
	key   string
	value any
}

func (s section) message() (*vici.Message, error) {
	m := vici.NewMessage()
	for _, e := range s {
		value := e.value
		if sub, ok := value.(section); ok {
			child, err := sub.message()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.key, err)
			}
			value = child
		}
		if err := m.Set(e.key, value); err != nil {
			return nil, fmt.Errorf("%s: %w", e.key, err)
		}
	}
	return m, nil
}

// text returns a string value, "" when m has no such key.
func text(m *vici.Message, key string) string {
	s, _ := m.Get(key).(string)
	return s
}

// texts returns a list value, nil when m has no such key.
func texts(m *vici.Message, key string) []string {
	l, _ := m.Get(key).([]string)
	return l
}

// sections yields the sections within a section, in order; none when m has no
// such key.
func sections(m *vici.Message, key string) iter.Seq2[string, *vici.Message] {
	sub, ok := m.Get(key).(*vici.Message)
	if !ok {
		return func(func(string, *vici.Message) bool) {}
	}
	return within(sub)
}

func within(m *vici.Message) iter.Seq2[string, *vici.Message] {
	return func(yield func(string, *vici.Message) bool) {
		for _, key := range m.Keys() {
			if sub, ok := m.Get(key).(*vici.Message); ok && !yield(key, sub) {
				return
			}
		}
	}
}

// Never stands for a time charon does not give: a rekeying that is not
// planned, a packet that never came.
const Never = time.Duration(math.MinInt64)

// decoder reads typed values out of a message and collects what is wrong. A
// key that is absent is not wrong: charon leaves out what does not apply.
type decoder struct {
	m    *vici.Message
	errs []error
}

func (d *decoder) err() error { return errors.Join(d.errs...) }

func (d *decoder) text(key string) string { return text(d.m, key) }

func (d *decoder) yes(key string) bool { return text(d.m, key) == "yes" }

func (d *decoder) number(key string, base, bits int) uint64 {
	s := d.text(key)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, base, bits)
	d.check(key, err)
	return n
}

// seconds reads a time span, which is negative when it is overdue, and when it
// is since something that is yet to come by a clock that was set back: of that
// charon makes an unsigned number.
func (d *decoder) seconds(key string) time.Duration {
	s := d.text(key)
	if s == "" {
		return Never
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if u, wide := strconv.ParseUint(s, 10, 64); wide == nil && int64(u) < 0 {
		n, err = int64(u), nil
	}
	d.check(key, err)
	return time.Duration(n) * time.Second
}

// endpoint reads an address and a port. The address is invalid when charon
// knows none yet and says "%any".
func (d *decoder) endpoint(host, port string) netip.AddrPort {
	var addr netip.Addr
	if s := d.text(host); s != "" && s != anyAddr && s != "%any6" {
		var err error
		addr, err = netip.ParseAddr(s)
		d.check(host, err)
	}
	return netip.AddrPortFrom(addr, uint16(d.number(port, 10, 16)))
}

func (d *decoder) check(key string, err error) {
	if err != nil {
		d.errs = append(d.errs, fmt.Errorf("%s: %w", key, err))
	}
}
