package lab

import "fmt"

// SetPath opens or breaks the way between what puts the packets of two hosts on
// the internet, both directions, as a firewall or a fault somewhere between
// does: silently. Their ways to everybody else stay.
func (l *Lab) SetPath(a, b *Host, open bool) error {
	from, to := a.Outside().link, b.Outside().link
	if from == nil || to == nil || from == to {
		return fmt.Errorf("path between %s and %s: want two hosts that the internet is between", a.name, b.name)
	}
	l.internet.setPath(from, to, open)
	return nil
}

// PowerOff cuts the host off and kills every process on it that was started
// with Start or StartCharon, as a machine that loses its power does. SetUp(true)
// connects it again; programs have to be started anew.
func (h *Host) PowerOff() error {
	if err := h.SetUp(false); err != nil {
		return err
	}
	h.takeCharon()
	for _, p := range h.lab.running(h.ns) {
		p.Kill()
	}
	return nil
}

// running lists the processes started in a namespace that have not ended.
func (l *Lab) running(ns *namespace) []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*Process
	for p, in := range l.processes {
		if in == ns {
			all = append(all, p)
		}
	}
	return all
}
