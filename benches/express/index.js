// A session in Redis, in it a map of paths to views: read with each request, changed, written back.
import { RedisStore } from 'connect-redis'
import express from 'express'
import session from 'express-session'
import parseurl from 'parseurl'
import { createClient } from 'redis'

const client = createClient({ url: process.env.REDIS_URL })
await client.connect()

const app = express()
app.use(session({
  store: new RedisStore({ client }),
  secret: 'forest squirrel',
  resave: false,
  saveUninitialized: true
}))

app.use((req, res, next) => {
  req.session.views ??= {}
  const pathname = parseurl(req).pathname
  req.session.views[pathname] = (req.session.views[pathname] || 0) + 1
  next()
})

for (const path of ['/', '/foo', '/bar']) {
  app.get(path, (req, res) => {
    res.send('you viewed this page ' + req.session.views[path] + ' times')
  })
}

// Pages that keep data of their own in the session.
app.get('/read', (req, res) => {
  const { number, views } = req.session
  res.send('you changed the number ' + (number || 0) + ' times and viewed this page ' + views['/read'] + ' times')
})
app.get('/change', (req, res) => {
  req.session.number = (req.session.number || 0) + 1
  res.send('you changed the number ' + req.session.number + ' times')
})
app.get('/fill', (req, res) => {
  req.session.text = 'x'.repeat(4000)
  res.send('kept')
})

app.listen(process.env.PORT)
