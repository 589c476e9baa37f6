import sys, time, json, random, torch, math
from pathlib import Path

from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from multitoken.quickstart import train_base as tb
from multitoken.quickstart.corpus import make_example, examples
from multitoken.models.model import Model
tb.PROMPT_WEIGHT=0.02
MIN=float(sys.argv[1]); LR=float(sys.argv[2]); TOK=int(sys.argv[3]); OUT=Path(sys.argv[4]); AC=sys.argv[5]=='bf16'
OUT.mkdir(exist_ok=True, parents=True)
base='src/multitoken/quickstart/checkpoints/base'
tok=PreTrainedTokenizerFast.from_pretrained(base)
model=LlamaForCausalLM.from_pretrained(base,dtype=torch.float32)
torch.manual_seed(0)
# (until this share of the run, mixture, end weight)
STAGES=[
 (0.10,{"short-counting":.5,"short-repeating":.3,"word-problems":.12,"letters":.03,"sums":.05},5.0),
 (0.25,{"short-counting":.25,"short-repeating":.15,"counting":.25,"repeating":.15,"word-problems":.13,"letters":.03,"sums":.04},5.0),
 (0.60,{"short-counting":.12,"short-repeating":.06,"counting":.36,"repeating":.22,"word-problems":.16,"letters":.03,"sums":.05},3.0),
 (1.01,{"short-counting":.06,"short-repeating":.04,"counting":.26,"repeating":.17,"word-problems":.35,"letters":.05,"sums":.07},1.0),
]
def stage(share):
    for until,m,e in STAGES:
        if share<until: return m,e
used=0
def pools(share):
    global used
    m,e=stage(share); tb.END_WEIGHT=e
    rows=[]
    for i in range(used,used+1024):
        rng=random.Random(f'v2:{i}')
        rows.append(make_example(rng.choices(list(m),weights=list(m.values()))[0],'train',i))
    used+=1024
    rows=tb.encode(tok,rows,3.0)
    rows=tb.join_turns(rows,0.1 if share>.6 else 0.03,random.Random(used))
    rows=[r for r in rows if r[0]]
    rows.sort(key=lambda r:len(r[0]))
    groups=[[]]
    for r in rows:
        if groups[-1] and len(r[0])*(len(groups[-1])+1)>TOK: groups.append([])
        groups[-1].append(r)
    random.Random(used).shuffle(groups)
    for g in groups:
        n=max(len(i) for i,_ in g)
        yield torch.tensor([i+[0]*(n-len(i)) for i,_ in g]),torch.tensor([w+[0.]*(n-len(w)) for _,w in g])
def right(task,n):
    ours=Model(model,tok); ex=sorted(examples(task,'valid',n),key=lambda e:len(e.response)); ok=0
    for s in range(0,n,32):
        b=ex[s:s+32]; ans=[[] for _ in b]
        for c in ours.decoder.decode([ours.encode(e.prompt) for e in b],max_new_tokens=330): ans[c.row]+=c.token_ids
        for e,ids in zip(b,ans):
            t=str(tok.decode(ids,skip_special_tokens=True))
            good=(t.rsplit('Answer: ',1)[-1].strip()==e.answer) if 'problems' in task else t.strip()==e.answer
            ok+=good
    return ok/n
opt=torch.optim.AdamW(model.parameters(),lr=LR,betas=(.9,.98),weight_decay=0.01)
start=time.time(); spent=0; step=0; tokens=0
state=OUT/'state.pt'
if state.exists():
    s=torch.load(state,weights_only=True); model.load_state_dict(s['model']); opt.load_state_dict(s['opt']); spent=s['spent']; step=s['step']; used=s['used']; tokens=s['tokens']; start=time.time()-spent
log=(OUT/'log.jsonl').open('a')
last=time.time()
def save():
    torch.save({'model':model.state_dict(),'opt':opt.state_dict(),'spent':time.time()-start,'step':step,'used':used,'tokens':tokens},str(state)+'.tmp'); Path(str(state)+'.tmp').replace(state)
acc=0
done=False
while not done:
    for ids,w in pools((time.time()-start)/60/MIN):
        share=(time.time()-start)/60/MIN
        if share>=1: done=True; break
        f=min(1,(step+1)/100)*(1 if share<.5 else max(.01,(1-share)/.5))
        for g in opt.param_groups: g['lr']=LR*f
        loss=tb.loss_of(model,ids,w,AC)/w[:,1:].sum()
        loss.backward(); nn.utils.clip_grad_norm_(model.parameters(),1.0); opt.step(); opt.zero_grad(set_to_none=True)
        step+=1; tokens+=int((w>0).sum()); acc=.98*acc+.02*loss.item()
        if step%50==0: print(json.dumps({'step':step,'loss':round(acc,4),'tokens':tokens,'s':round(time.time()-start)}),file=log,flush=True)
    if time.time()-last>540 and not done:
        model.eval(); save(); t=time.time()
        r={k:right(k,n) for k,n in (('held-out-counting',64),('held-out-repeating',64),('word-problems',64))}
        print(json.dumps({'step':step,'share':round(share,3),**r,'eval_s':round(time.time()-t)}),file=log,flush=True); model.train()
        start+=time.time()-t; last=time.time()
save(); model.eval()
for p in model.parameters(): p.data=p.data.to(torch.bfloat16).float()
r={k:right(k,n) for k,n in (('counting',128),('repeating',128),('held-out-counting',256),('held-out-repeating',256),('word-problems',256))}
print(json.dumps({'step':step,'final':r}),file=log,flush=True)
for p in model.parameters(): p.data=p.data.to(torch.bfloat16)
model.config.dtype=torch.bfloat16
model.save_pretrained(OUT); tok.save_pretrained(OUT)
