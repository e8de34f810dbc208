-- What follows walks over the tables above; it knows no call by name.

local frames_protocol = Proto("hcalld", "hcalld frame (docs/wire.rst)")
local calls_protocol = Proto("hcall", "sPAPR hypercall or ultracall")
local records_protocol = Proto("hcalld_record", "hcalld record (docs/capture.md)")

-- Fields ------------------------------------------------------------------------------

local function integer_field(type_, abbr, title, base_, names, doc)
  local make = { u8 = ProtoField.uint8, u16 = ProtoField.uint16, u32 = ProtoField.uint32,
                 u64 = ProtoField.uint64, i64 = ProtoField.int64 }
  if type_ == "bytes" then
    return ProtoField.bytes(abbr, title, base.NONE, doc)
  end
  return make[type_](abbr, title, base_, names, nil, doc)
end

local HEXADECIMAL = { nip = true, msr = true, msr_mask = true, gpa = true, features = true,
                      register_mask = true, flags = true, number = true, context = true }

local function words(name)
  return (name:gsub("_", " "))
end

local layout_fields = {}
for layout, rows in pairs(LAYOUTS) do
  layout_fields[layout] = {}
  for _, row in ipairs(rows) do
    local base_ = base.DEC
    if HEXADECIMAL[row.name] and row.type ~= "i64" then
      base_ = base.HEX
    end
    local prefix = layout == "HEADER" and "" or layout:lower() .. "."
    local field = integer_field(row.type, "hcalld." .. prefix .. row.name, words(row.name), base_,
                                row.names, row.doc)
    layout_fields[layout][row.name] = field
    table.insert(frames_protocol.fields, field)
  end
end

local text_field = ProtoField.string("hcalld.text", "text")
local data_field = ProtoField.bytes("hcalld.data", "data")
local rest_field = ProtoField.bytes("hcalld.rest", "not understood")
local property_field = ProtoField.string("hcalld.property", "root property")
local string_field = ProtoField.string("hcalld.hypertas", "ibm,hypertas-functions")
local register_field = ProtoField.uint64("hcalld.register", "register", base.HEX)
for _, field in ipairs({ text_field, data_field, rest_field, property_field, string_field,
                         register_field }) do
  table.insert(frames_protocol.fields, field)
end

local hcall = {
  nr = ProtoField.uint64("hcall.nr", "number", base.HEX, nil, nil, "r3 of the call"),
  name = ProtoField.string("hcall.name", "call"),
  family = ProtoField.string("hcall.family", "family"),
  level = ProtoField.uint8("hcall.level", "level", base.DEC, nil, nil, "LEV of sc"),
  vcpu = ProtoField.uint32("hcall.vcpu", "vCPU", base.DEC),
  seq = ProtoField.uint64("hcall.seq", "sequence number", base.DEC),
  ret = ProtoField.int64("hcall.ret", "return code", base.DEC, nil, nil, "r3 for the guest"),
  ret_name = ProtoField.string("hcall.ret_name", "return code"),
  reply = ProtoField.framenum("hcall.reply", "reply", base.NONE, frametype.RESPONSE),
  call = ProtoField.framenum("hcall.call", "call", base.NONE, frametype.REQUEST),
  time = ProtoField.relative_time("hcall.time", "time from the call"),
  blanked = ProtoField.bool("hcall.blanked", "blanked"),
  stream = ProtoField.uint32("hcall.stream", "stream", base.DEC, nil, nil,
                             "counts vCPUs of connections"),
  reason = ProtoField.string("hcall.reason", "reason", base.NONE, "why it was refused"),
}
for _, field in pairs(hcall) do
  table.insert(calls_protocol.fields, field)
end

local refused = ProtoExpert.new("hcall.refused", "refused", expert.group.RESPONSE_CODE,
                                expert.severity.NOTE)
calls_protocol.experts = { refused }

-- One field for each name of an argument in a family: calls share them.
local argument_fields = {}

local function argument_field(family, name, make, ...)
  local abbr = family .. "." .. name
  if not argument_fields[abbr] then
    argument_fields[abbr] = make(abbr, words(name), ...)
    table.insert(calls_protocol.fields, argument_fields[abbr])
  end
  return argument_fields[abbr]
end

local by_number = {}
for _, call in ipairs(CALLS) do
  by_number[call.level .. ":" .. call.number] = call
  for _, arg in ipairs(call.args) do
    local base_ = arg.kind == "hex" and base.HEX or base.DEC
    if arg.buffer then
      arg.field = argument_field(call.family, arg.name .. ".gpa", ProtoField.uint64, base_)
      arg.content = argument_field(call.family, arg.name, ProtoField.string)
      arg.bytes = argument_field(call.family, arg.name .. ".bytes", ProtoField.bytes)
    else
      arg.field = argument_field(call.family, arg.name, ProtoField.uint64, base_)
    end
  end
  for _, output in ipairs(call.outputs) do
    local base_ = output.kind == "hex" and base.HEX or base.DEC
    output.field = argument_field(call.family, output.name, ProtoField.uint64, base_)
  end
end

-- What is remembered from frame to frame ------------------------------------------------

local interface_id = Field.new("frame.interface_id")
local interface_name = Field.new("frame.interface_name")
local comment = Field.new("frame.comment")

-- By interface: the buffers that come with each announced call, by "level:number".
local announced
-- By interface, vCPU and sequence number: the CALL.
local calls
-- By number of a frame: the CALL that it belongs to. Wireshark shows frames in any order.
local call_of
-- By number of a CALL's frame: the number of its REPLY's.
local reply_of
-- By number of a READ_REPLY's frame: what was asked.
local asked_by
-- By interface and vCPU: the number of the stream; and how many there are.
local streams, stream_count
-- By number of a frame: its connection was known.
local learned

function frames_protocol.init()
  announced, calls, call_of, reply_of, asked_by = {}, {}, {}, {}, {}
  streams, stream_count, learned = {}, 0, {}
end

local function hex(range)
  return tostring(range:bytes()):lower()
end

-- Without a tree, as in the first pass of `tshark -2` without a filter, there are no fields;
-- then all frames seem to be of one connection, until they are seen again.
local function connection()
  local id = interface_id()
  return id and tostring(id.value) or "?"
end

-- A tap with a filter has Wireshark make trees when it reads a file, too.
if gui_enabled() then
  Listener.new("frame", "hcalld")
end

local function nanoseconds(pinfo)
  return math.floor(pinfo.rel_ts * 1e9 + 0.5)
end

local function elapsed(from, to)
  return NSTime.new(math.floor((to - from) / 1e9), (to - from) % 1e9)
end

local function stream_of(vcpu)
  local place = connection() .. ":" .. vcpu
  if not interface_id() then
    return 0
  end
  if not streams[place] then
    streams[place], stream_count = stream_count, stream_count + 1
  end
  return streams[place]
end

-- Values ----------------------------------------------------------------------------------

-- A table, and not a function: data have thousands of bytes, and each call costs.
local ESCAPED = {}
for value = 0, 255 do
  ESCAPED[string.char(value)] = string.format("\\x%02x", value)
end

local function quoted(range)
  return (range:raw():gsub("[^\32-\126]", ESCAPED))
end

local function is_blanked(range, open_size)
  return range:len() > open_size and not range:raw():find("[^%z]", open_size + 1)
end

local function is_all_zeros(range)
  return not range:raw():find("[^%z]")
end

local function bit_names(bits, value)
  local found = {}
  local number = UInt64.fromhex(value)
  for bit, name in pairs(bits) do
    local mask = UInt64.fromhex(bit)
    if bit ~= "0000000000000000" and number:band(mask) == mask then
      table.insert(found, name)
    end
  end
  table.sort(found)
  return table.concat(found, "|")
end

local function value_name(described, range)
  if described.names then
    return described.names[hex(range)]
  elseif described.bits then
    local names = bit_names(described.bits, hex(range))
    return names ~= "" and names or nil
  end
end

local function add_value(tree, described, range)
  local item = tree:add(described.field, range)
  local name = value_name(described, range)
  if name then
    item:append_text(" (" .. name .. ")")
  end
  return name
end

-- Wireshark's own for TPM 2.0 has no name to ask for it by, and tells commands from responses
-- by the port of Microsoft's simulator: whatever it is sent from is a command.
local TPM_PORT = 2321
local tpm_dissector = DissectorTable.get("tcp.port"):get_dissector(TPM_PORT)

-- Less is no command, and its dissector fails.
local TPM_HEADER_SIZE = 10

local function add_tpm(pinfo, root, range, direction)
  if not tpm_dissector or range:len() < TPM_HEADER_SIZE then
    return
  end
  pinfo.src_port = direction == "in" and TPM_PORT or 0
  pinfo.dst_port = direction == "in" and 0 or TPM_PORT
  -- What a guest sends may be no TPM's: Wireshark says so, and our own fields stay.
  pcall(tpm_dissector.call, tpm_dissector, range:tvb(), pinfo, root)
end

local function add_content(tree, pinfo, root, call, arg, range)
  if range:len() == 0 then
    return
  end
  local text = quoted(range)
  local item = tree:add(arg.content, range, text)
  item:add(arg.bytes, range)
  if arg.buffer == "secret" and is_blanked(range, arg.open_size) then
    item:set_text(words(arg.name) .. ": blanked, " .. range:len() .. " bytes")
    item:add(hcall.blanked, true):set_generated()
    -- All of it: cut off behind the header, Wireshark takes it for malformed.
    if call.family == "tpm" and not is_all_zeros(range) then
      add_tpm(pinfo, root, range, arg.direction)
    end
  elseif call.family == "tpm" then
    add_tpm(pinfo, root, range, arg.direction)
  end
  return '"' .. text .. '"'
end

-- Layouts ---------------------------------------------------------------------------------

local function add_layout(tree, layout, range)
  local found = {}
  for _, row in ipairs(LAYOUTS[layout]) do
    local part = range(row.offset, row.size)
    tree:add(layout_fields[layout][row.name], part)
    found[row.name] = part
  end
  return found
end

local function size_of(layout)
  return LAYOUT_SIZES[layout]
end

-- Walks over a frame from front to back.
local Walk = {}
Walk.__index = Walk

function Walk:left()
  return self.tvb:len() - self.at
end

function Walk:bytes(size)
  local part = self.tvb(self.at, size)
  self.at = self.at + size
  return part
end

function Walk:fixed(layout, tree)
  return add_layout(tree or self.tree, layout, self:bytes(size_of(layout)))
end

function Walk:item(layout, title)
  local size = math.min(size_of(layout), self:left())
  local tree = self.tree:add(frames_protocol, self.tvb(self.at, size), title or words(layout:lower()))
  return self:fixed(layout, tree), tree
end

function Walk:sized(tree, field, ...)
  local size = self:bytes(2):uint()
  local part = self:bytes(size)
  if field then
    tree:add(field, part, quoted(part), ...)
  end
  return part
end

function Walk:data(tree, size)
  local part = self:bytes(size)
  if size > 0 then
    tree:add(data_field, part)
  end
  return part
end

function Walk:announcement()
  local counts = self:fixed("ANNOUNCEMENT")
  -- An announcement holds from the next reset on; until then calls are those of the one before.
  local buffers = announced[connection()] or {}
  for _ = 1, counts.call_count:uint() do
    local spec, tree = self:item("CALL_SPEC")
    local key = spec.level:uint() .. ":" .. hex(spec.number)
    local known = by_number[key]
    tree:append_text(": " .. (known and known.name or "0x" .. hex(spec.number)))
    buffers[key] = {}
    for index = 1, spec.buffer_count:uint() do
      local buffer = self:fixed("BUFFER_SPEC", tree)
      buffers[key][index - 1] = buffer.address_register:uint()
    end
  end
  for _ = 1, counts.string_count:uint() do
    self:sized(self.tree, string_field)
  end
  for _ = 1, counts.property_count:uint() do
    local name = quoted(self:sized(self.tree))
    local value = self:sized(self.tree)
    self.tree:add(property_field, value, name .. " = " .. quoted(value))
  end
  announced[connection()] = buffers
end

function Walk:writes(count, name_of)
  for _ = 1, count do
    local segment, tree = self:item("WRITE_SEGMENT")
    if segment.flags:uint() % 2 < WRITE_FLAG_ZERO then
      local data = self:data(tree, segment.size:uint())
      name_of(segment.gpa, data)
    end
  end
end

function Walk:pages()
  local counts = self:fixed("PAGES")
  for _ = 1, counts.range_count:uint() do
    self:item("PAGE_RANGE")
  end
end

-- Calls -----------------------------------------------------------------------------------

local function masked(range)
  return (hex(range):gsub("^.", "0"))
end

local function register_range(range, number)
  for index, register in ipairs(REGISTERS) do
    if register == number then
      return range(8 * (index - 1), 8)
    end
  end
end

-- A command that only asks for lengths.
local function is_query(known, fixed)
  for _, register in ipairs(known and known.query and known.query.asks or {}) do
    if hex(register_range(fixed.gpr, register)):match("^0+$") then
      return true
    end
  end
  return false
end

local function is_refusal(call, status)
  local codes = call and CODES_OF[call.level] or "H"
  if AGAIN[codes][status] or (call and call.is_query and status == call.known.query.code) then
    return false
  end
  -- A command's status is a refusal above 0, too.
  return status < 0 or (call and call.level == LEVEL_COMMAND and status > 0)
end

local function add_call(self, fixed)
  local number = register_range(fixed.gpr, 3)
  local key = fixed.level:uint() .. ":" .. hex(number)
  local known = by_number[key]
  local name = known and known.name or "call 0x" .. hex(number):gsub("^0+", "")
  local tree = self.root:add(calls_protocol, self.tvb, "Call: " .. name)
  self.call_tree = tree
  tree:add(hcall.name, name):set_generated()
  tree:add(hcall.nr, number)
  tree:add(hcall.level, fixed.level)
  tree:add(hcall.vcpu, self.header.vcpu)
  tree:add(hcall.stream, stream_of(self.header.vcpu:uint())):set_generated()
  tree:add(hcall.seq, self.header.seq)
  local shown = {}
  local gpas = {}
  if known then
    tree:add(hcall.family, known.family):set_generated()
    for _, arg in ipairs(known.args) do
      local range = register_range(fixed.gpr, arg.register)
      local text = add_value(tree, arg, range)
      if arg.buffer then
        gpas[arg.name] = masked(range)
      elseif text then
        table.insert(shown, arg.name .. "=" .. text)
      end
    end
  end
  local place = connection() .. ":" .. self.header.vcpu:uint() .. ":" .. hex(self.header.seq)
  local call = { known = known, name = name, gpas = gpas, number = self.pinfo.number,
                 time = nanoseconds(self.pinfo), place = place, key = key, asked = {},
                 level = fixed.level:uint(), is_query = is_query(known, fixed) }
  if self.is_learning then
    calls[place] = call
    call_of[self.pinfo.number] = call
    call.inline = (announced[connection()] or {})[key]
  end
  call = call_of[self.pinfo.number] or call
  if reply_of[self.pinfo.number] then
    tree:add(hcall.reply, reply_of[self.pinfo.number]):set_generated()
  end
  return call, tree, shown
end

local function argument_at(call, gpa, direction)
  for _, arg in ipairs(call.known and call.known.args or {}) do
    if arg.buffer and arg.direction == direction and call.gpas[arg.name] == gpa then
      return arg
    end
  end
end

local function argument_in(call, register)
  for _, arg in ipairs(call.known and call.known.args or {}) do
    if arg.buffer and arg.register == register then
      return arg
    end
  end
end

local function belongs_to(self)
  local place = connection() .. ":" .. self.header.vcpu:uint() .. ":" .. hex(self.header.seq)
  if self.is_learning then
    call_of[self.pinfo.number] = calls[place] or call_of[self.pinfo.number]
  end
  return call_of[self.pinfo.number]
end

local function link(self, tree, call)
  tree:add(hcall.vcpu, self.header.vcpu)
  tree:add(hcall.stream, stream_of(self.header.vcpu:uint())):set_generated()
  tree:add(hcall.seq, self.header.seq)
  if call then
    tree:add(hcall.name, call.name):set_generated()
    tree:add(hcall.call, call.number):set_generated()
    if call.known then
      tree:add(hcall.family, call.known.family):set_generated()
    end
  end
end

local tails = {}

function tails.HELLO(self)
  self:sized(self.tree, text_field)
  self:sized(self.tree, text_field)
end

function tails.WELCOME(self)
  self:announcement()
end

function tails.ANNOUNCE(self)
  self:announcement()
end

function tails.ACCEPT(self, fixed)
  for _ = 1, fixed.refused_count:uint() do
    self:item("REFUSED_CALL")
  end
end

function tails.RAM(self, fixed)
  for _ = 1, fixed.region_count:uint() do
    self:item("RAM_REGION")
  end
end

function tails.GOODBYE(self)
  self.info = quoted(self:sized(self.tree, text_field))
end
tails.SHIM_GOODBYE = tails.GOODBYE

function tails.CONTROL(self)
  self.info = quoted(self:sized(self.tree, text_field))
end

function tails.CALL(self, fixed)
  local call, tree, shown = add_call(self, fixed)
  for _ = 1, fixed.segment_count:uint() do
    local segment, item = self:item("CALL_SEGMENT")
    local data = self:data(item, segment.size:uint())
    local arg = call.inline and argument_in(call, call.inline[segment.buffer:uint()])
    if arg and segment.status:uint() == 0 then
      local text = add_content(tree, self.pinfo, self.root, call.known, arg, data)
      -- What commands bring is certificates and packets: no text.
      if text and arg.buffer == "shown" and call.level ~= LEVEL_COMMAND then
        table.insert(shown, 1, arg.name .. "=" .. text)
      end
    end
  end
  self.info = call.name .. "(" .. table.concat(shown, ", ") .. ")"
end

function tails.REPLY(self, fixed)
  local call = belongs_to(self)
  local tree = self.root:add(calls_protocol, self.tvb, "Reply")
  link(self, tree, call)
  local codes = CODES[call and CODES_OF[call.level] or "H"]
  local name = codes[tonumber(tostring(fixed.status:int64()))] or tostring(fixed.status:int64())
  tree:add(hcall.ret, fixed.status)
  tree:add(hcall.ret_name, name):set_generated()
  tree:append_text(": " .. (call and call.name .. " = " or "") .. name)
  self.info = (call and call.name or "") .. " = " .. name
  local reason = comment()
  if reason then
    tree:add(hcall.reason, reason.value):set_generated()
    self.info = self.info .. " -- " .. reason.value
  end
  if is_refusal(call, tonumber(tostring(fixed.status:int64()))) then
    tree:add_proto_expert_info(refused, name .. (reason and ": " .. reason.value or ""))
  end
  if call then
    tree:add(hcall.time, elapsed(call.time, nanoseconds(self.pinfo))):set_generated()
    if self.is_learning then
      reply_of[call.number] = self.pinfo.number
    end
  end
  local mask = fixed.register_mask:uint()
  for number = 0, 31 do
    if mask % 2 == 1 then
      local range = self:bytes(8)
      self.tree:add(register_field, range):prepend_text("r" .. number .. " ")
      for _, output in ipairs(call and call.known and call.known.outputs or {}) do
        if output.register == number then
          add_value(tree, output, range)
        end
      end
    end
    mask = math.floor(mask / 2)
  end
  self:writes(fixed.write_count:uint(), function(gpa, data)
    local arg = call and argument_at(call, hex(gpa), "out")
    if arg then
      add_content(tree, self.pinfo, self.root, call.known, arg, data)
    end
  end)
  if math.floor(fixed.context:uint() / CONTEXT_PAGES) % 2 == 1 then
    self:pages()
  end
end

function tails.READ(self, fixed)
  local call = belongs_to(self)
  local asked = {}
  for index = 1, fixed.segment_count:uint() do
    asked[index] = hex(self:item("READ_SEGMENT").gpa)
  end
  if call and self.is_learning then
    call.asked = asked
  end
  link(self, self.root:add(calls_protocol, self.tvb, "Read of guest memory"), call)
end

function tails.READ_REPLY(self, fixed)
  local call = belongs_to(self)
  local tree = self.root:add(calls_protocol, self.tvb, "Guest memory")
  link(self, tree, call)
  if call and self.is_learning then
    asked_by[self.pinfo.number] = call.asked
  end
  local asked = asked_by[self.pinfo.number] or {}
  for index = 1, fixed.segment_count:uint() do
    local segment, item = self:item("READ_DATA")
    local data = self:data(item, segment.size:uint())
    local arg = call and asked[index] and argument_at(call, asked[index], "in")
    if arg then
      add_content(tree, self.pinfo, self.root, call.known, arg, data)
    end
  end
end

function tails.WRITE(self, fixed)
  local call = belongs_to(self)
  local tree = self.root:add(calls_protocol, self.tvb, "Write to guest memory")
  link(self, tree, call)
  self:writes(fixed.segment_count:uint(), function(gpa, data)
    local arg = call and argument_at(call, hex(gpa), "out")
    if arg then
      add_content(tree, self.pinfo, self.root, call.known, arg, data)
    end
  end)
end

function tails.PAGES(self, fixed)
  link(self, self.root:add(calls_protocol, self.tvb, "States of pages"), belongs_to(self))
  for _ = 1, fixed.range_count:uint() do
    self:item("PAGE_RANGE")
  end
end

-- Packets ---------------------------------------------------------------------------------

function frames_protocol.dissector(tvb, pinfo, root)
  if tvb:len() < HEADER_SIZE then
    return 0
  end
  local tree = root:add(frames_protocol, tvb())
  local self = setmetatable({ tvb = tvb, at = 0, tree = tree, root = root, pinfo = pinfo,
                              info = "" }, Walk)
  self.is_learning = not pinfo.visited or (interface_id() and not learned[pinfo.number])
  learned[pinfo.number] = learned[pinfo.number] or interface_id() ~= nil
  self.header = self:fixed("HEADER")
  local type_ = self.header.type:uint()
  local name = FRAME_TYPES[type_] or "frame " .. type_
  tree:append_text(": " .. name)
  pinfo.cols.protocol = "hcalld"
  local layout = LAYOUT_OF[type_] or ""
  local fixed = layout ~= "" and self:fixed(layout) or {}
  if tails[name] then
    tails[name](self, fixed)
  end
  if self:left() > 0 then
    tree:add(rest_field, self:bytes(self:left()))
  end
  local guest = interface_name() and interface_name().value or "guest"
  local is_from_guest = type_ % 2 == 1
  pinfo.cols.src = is_from_guest and guest or "hcalld"
  pinfo.cols.dst = is_from_guest and "hcalld" or guest
  local vcpu = self.header.vcpu:uint()
  local where = vcpu < 0xfffffffe and "cpu" .. vcpu .. " " or ""
  pinfo.cols.info = where .. name .. (self.info ~= "" and " " .. self.info or "")
  return tvb:len()
end

function records_protocol.dissector(tvb, pinfo, root)
  pinfo.cols.protocol = "hcalld"
  pinfo.cols.info = "record"
  root:add(records_protocol, tvb())
  Dissector.get("json"):call(tvb, pinfo, root)
  return tvb:len()
end

local links = DissectorTable.get("wtap_encap")
links:add(wtap.USER0 + FRAMES_LINK, frames_protocol)
links:add(wtap.USER0 + RECORDS_LINK, records_protocol)
