// Package rolltest measures what clients lose while an ECS service in the mesh is rolled over: it holds nothing but a
// test, apart from package e2e because it needs a lab of its own and a machine that does nothing else for a minute.
//
// The programs are those of $ISTHMUS_BIN, by default the repository's bin/. Other variables:
//
//	ISTHMUS_ROLL_RATE=200   requests a second
//	ISTHMUS_ROLL_LAME_DUCK=5s how long the application serves on after SIGTERM; an application that stops at once (0s)
//	                          loses the requests that it had been given and not answered, which no mesh can send again
//	ISTHMUS_ROLL_HEALTH=none  the application has no health check, so that it is called as soon as it was started; while it
//	                          does not listen yet it refuses what it is sent
//	ISTHMUS_ROLL_DIR=PATH   use the lab of this state directory and keep it up
package rolltest
